"""Keys and certificates that the server holds."""
