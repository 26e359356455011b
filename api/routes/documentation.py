"""The page at `/docs`: Swagger UI, all of whose files are served from here, so that it works without internet."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

# The package is used for its files alone: its own page would also serve ReDoc, and scripts inside the page.
_FILES: Final = Path(str(files("fastapi_offline"))) / "static"
_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}

# Swagger UI sets styles on elements and shows pictures from data URIs; it needs nothing from any other host.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

# Addresses are relative, so that the page also works behind a proxy that serves the api below a path.
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>colqueue</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Without `validatorUrl: null` it would send the document to a validator on the internet.
_START: Final = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


@router.get("/docs")
async def page() -> Response:
    """Return the page."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/docs/start.js")
async def start() -> Response:
    """Return the script that shows our OpenAPI document."""
    return Response(_START, media_type="text/javascript", headers=_HEADERS)


@router.get("/docs/{asset}")
async def asset(asset: str) -> Response:
    """Return one of Swagger UI's files."""
    if asset not in _ASSETS:
        raise HTTPException(404)
    return FileResponse(_FILES / asset, media_type=_ASSETS[asset], headers=_HEADERS)
