"""The room of `redetr app`: a web page for a detector and an HTTP endpoint, in Starlette.

`server.web_app` joins the parts: `guard` decides which requests are answered, `uploads` reads
images from strangers, `api` answers programs, and `page` answers `page.html` with its script.
"""
