"""The application: attention from the whole context down to one token, in a browser."""
