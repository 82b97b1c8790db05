"""Files from elsewhere, opened in a child process with limits, which audits them and hands over plain numbers."""
