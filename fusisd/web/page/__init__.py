"""The status page at `/`: one page for people, drawn on the server, kept up to date by its script."""
