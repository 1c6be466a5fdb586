"""Atlas: what is known of one dictionary of latents. Frozen values that cases, pages and audits read without torch.

    parts    the values
    folder   an atlas on disk, whole or absent
    shelf    the atlases of a site: which one belongs to a model and an SAE

An atlas is of one SAE at one tap of one model, over one set of pictures. It lies in `SITE/atlas/SLUG/`:

    atlas.json   schema version first; then everything but the arrays; last written, with the hash of each other file
    arrays.npz   numpy arrays, no pickles: `Arrays` says what each one is

    SITE/atlas/pictures-HASH/000.webp, 001.webp, …

are its reference pictures, small, as the model saw them, many to a sheet. Atlases that were made in one pass share
them, so they lie beside the atlases and not inside; each atlas names the folder and its sheets (`Sheets`).

Pages need nothing else: neither the pictures' folder nor the model. Nothing in an atlas depends on the hour, so the
same survey twice gives the same bytes, and its hash (`atlas_sha`) is that of atlas.json.
"""

from vsp_report.atlas.folder import (
    ARRAYS,
    ATLAS,
    atlas_sha,
    atlases_in,
    load_atlas,
    save_atlas,
    save_sheets,
    sheet_sha,
    sheets_named,
    sweep_sheets,
)
from vsp_report.atlas.parts import (
    ABSENT,
    GOOD,
    SCHEMA,
    Arrays,
    Atlas,
    Cluster,
    Concept,
    Label,
    Labelling,
    LatentFacts,
    Measure,
    Neighbour,
    Provenance,
    Reference,
    Sheets,
    Spot,
)
from vsp_report.atlas.shelf import ATLASES, Place, find_atlas, place_of, same_latents, shelf_sha, slug_of

__all__ = [
    "ABSENT", "ARRAYS", "ATLAS", "ATLASES", "GOOD", "SCHEMA", "Arrays", "Atlas", "Cluster", "Concept", "Label",
    "Labelling", "LatentFacts", "Measure", "Neighbour", "Place", "Provenance", "Reference", "Sheets", "Spot",
    "atlas_sha", "atlases_in", "find_atlas", "load_atlas", "place_of", "same_latents", "save_atlas", "save_sheets",
    "sheet_sha", "sheets_named", "shelf_sha", "slug_of", "sweep_sheets",
]  # fmt: skip
