"""Conftest: the one case, site, server and kernel that live tests share."""

from tests.live.serving import home_fixture, served_fixture

__all__ = ["home_fixture", "served_fixture"]
