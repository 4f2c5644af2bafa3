"""The database behind a URL: what the URL may say, the file of SQLite, engines, and its errors in words."""
