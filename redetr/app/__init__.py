"""`redetr app`: a web page and an HTTP endpoint for a detector, with Starlette.

`server.web_app` puts the parts together: `guard` decides which requests are answered, `uploads`
reads images from untrusted clients, `api` serves programs, and `page` serves `page.html` and the
requests of its script.
"""
