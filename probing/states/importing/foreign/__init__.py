"""Untrusted files are opened in a child process with limits, which checks them and sends plain numbers."""
