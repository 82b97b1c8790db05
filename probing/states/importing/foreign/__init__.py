"""Files from elsewhere, opened in a child process with limits, which audits them and sends plain numbers."""
