"""Reports of a run: the header, its outcome and the HTML page."""
