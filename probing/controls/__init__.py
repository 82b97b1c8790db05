"""Holds the controls, one per file: each makes random labels of the same form as the task's labels, or other states for
the same labels.
"""
