"""Opens untrusted files in a child process with limits; the child checks the files and sends only numbers back."""
