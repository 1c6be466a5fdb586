"""Share: the picture that goes with a link to a case, where such a link is shown: the case's own overlay."""

from __future__ import annotations

import io

from PIL import Image

from vsp_report.render.theme import LIGHT

SIZE = (1200, 630)
"""What those who show links with pictures ask for."""
_MARGIN = 45


def card(image: Image.Image) -> bytes:
    """The whole picture on the page's own ground, nothing cut off, as JPEG, which all of them read."""
    scale = min((SIZE[0] - 2 * _MARGIN) / image.width, (SIZE[1] - 2 * _MARGIN) / image.height)
    fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    ground = Image.new("RGB", SIZE, LIGHT["paper"])
    ground.paste(fitted, ((SIZE[0] - fitted.width) // 2, (SIZE[1] - fitted.height) // 2))
    buffer = io.BytesIO()
    ground.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
