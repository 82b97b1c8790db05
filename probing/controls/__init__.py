"""Controls: each file is one kind of random labels that match the task's labels in form, or of substitute states."""
