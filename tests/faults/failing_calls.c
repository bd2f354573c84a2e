/* Loaded before libc: logs every write, truncation and fsync of a journal's files, and fails one.
 *
 * A record of the log: operation, whether it failed, length of the file's name, offset, size; then
 * the name and, of a write, its bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 'w', SYNC = 's', TRUNCATE = 't', MARK = 'm' };

struct __attribute__((packed)) record {
    uint8_t operation, failed;
    uint16_t name_bytes;
    uint64_t offset, size;
};

static int log_fd = -1;
static int victim, calls_left, number;

void calls_log(const char *path) { log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600); }

/* The call of this operation after so many others of it fails, once. */
void calls_arm(int operation, int after, int error) {
    victim = operation;
    calls_left = after;
    number = error;
}

int calls_hit(void) { return victim == 0; }

static ssize_t real_write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return real(fd, data, size);
}

static void put(int operation, int failed, const char *name, uint64_t offset, uint64_t size,
                const void *data) {
    struct record record = {operation, failed, strlen(name), offset, size};
    real_write(log_fd, &record, sizeof record);
    real_write(log_fd, name, strlen(name));
    if (data) real_write(log_fd, data, size);
}

void calls_mark(uint64_t value) { put(MARK, 0, "", value, 0, NULL); }

/* The name of a journal's file, or nothing. */
static const char *journal_file(int fd, char path[512]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = log_fd < 0 ? -1 : readlink(link, path, 511);
    if (size < 0) return NULL;
    path[size] = 0;
    const char *name = strrchr(path, '/');
    if (!name) return NULL;
    return strncmp(name, "/journal.db", 11) && !strstr(path, "/journal-copy/") ? NULL : name + 1;
}

static int fails(int operation) {
    if (victim != operation || calls_left-- > 0) return 0;
    victim = 0;
    errno = number;
    return 1;
}

static ssize_t do_write(int fd, const void *data, size_t size, off_t offset, int positioned) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    char path[512];
    const char *name = journal_file(fd, path);
    if (name) {
        if (!positioned) offset = lseek(fd, 0, SEEK_CUR);
        int failed = fails(WRITE);
        int saved = errno;
        put(WRITE, failed, name, offset, size, data);
        errno = saved;
        if (failed) return -1;
    }
    return positioned ? real(fd, data, size, offset) : real_write(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return do_write(fd, data, size, offset, 1);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return do_write(fd, data, size, offset, 1);
}
ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, 0, 0); }

static int do_sync(int fd, const char *call) {
    int (*real)(int) = dlsym(RTLD_NEXT, call);
    char path[512];
    const char *name = journal_file(fd, path);
    if (name) {
        int failed = fails(SYNC);
        int saved = errno;
        put(SYNC, failed, name, 0, 0, NULL);
        errno = saved;
        if (failed) return -1;
    }
    return real(fd);
}

int fsync(int fd) { return do_sync(fd, "fsync"); }
int fdatasync(int fd) { return do_sync(fd, "fdatasync"); }

static int do_truncate(int fd, off_t size, const char *call) {
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, call);
    char path[512];
    const char *name = journal_file(fd, path);
    if (name) {
        int failed = fails(TRUNCATE);
        int saved = errno;
        put(TRUNCATE, failed, name, size, 0, NULL);
        errno = saved;
        if (failed) return -1;
    }
    return real(fd, size);
}

int ftruncate(int fd, off_t size) { return do_truncate(fd, size, "ftruncate"); }
int ftruncate64(int fd, off64_t size) { return do_truncate(fd, size, "ftruncate64"); }
