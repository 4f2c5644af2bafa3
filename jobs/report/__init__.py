"""The report on a sweep: a page, figures, a live server."""
