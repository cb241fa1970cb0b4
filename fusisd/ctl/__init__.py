"""The operator's command line, fusisctl."""
