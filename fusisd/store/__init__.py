"""Where wishes and ownership are kept on disk."""
