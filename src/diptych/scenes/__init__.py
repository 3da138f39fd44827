"""The built-in world: vector scenes, drawn, described, asked about, edited, read back from pictures and scored exactly.

numpy and Pillow only; every module can be imported alone. ``sample.sample_scene`` -> ``draw.draw`` -> ``parse.parse``.

Stated bounds: shapes fill bounding circles of radius 0.09, 0.13 or 0.18 of the side (``scene.SIZE_RADIUS``), which lie
at least 0.045 apart and 0.02 from the edge (``sample.MIN_GAP``, ``sample.MARGIN``); so nothing overlaps, and at 64 px
the gap is 2.9 px. Colours and backgrounds are at least 124 of 255 apart (``draw.COLOR_RGB``, ``draw.BACKGROUND_RGB``).
"""
