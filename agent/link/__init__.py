"""gRPC calls to the control plane: the stream, files, metadata, certificate renewal."""
