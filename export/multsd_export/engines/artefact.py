"""Engines kept from export to export, each beside the ONNX file that it is made from.

An engine is built again only when its graph, its shapes, its settings or the machine change: an export that was
stopped goes on with the first network that has none.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from multsd_export.artefacts import Artefact, Progress, kept, read_stamp, write_stamp
from multsd_export.digests import file_digest, value_digest
from multsd_export.engines.builder import build_engine
from multsd_export.engines.machine import Machine
from multsd_export.engines.record import PLAN_FILE
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange
from multsd_export.folders import replacing_folder
from multsd_export.onnx_export import MODEL_FILE

SOURCES = ("builder.py",)  # what decides how an engine is built


def engine_artefact(
    onnx: Artefact,
    ranges: Mapping[str, ShapeRange],
    settings: EngineSettings,
    machine: Machine,
    progress: Progress,
) -> Artefact:
    """The engine of an ONNX file, built only where it is not there yet; its facts are its record.

    Raises:
        EngineError: nothing is kept of it.
    """
    record = {
        **asdict(machine),
        "precision": onnx.facts["precision"],
        "onnx": dict(onnx.files),
        "shapes": {name: asdict(shapes) for name, shapes in ranges.items()},
        "settings": asdict(settings),
    }
    key = value_digest([record, *(file_digest(Path(__file__).with_name(name)) for name in SOURCES)])
    folder = onnx.folder.with_name(f"{onnx.folder.name}-engine")
    artefact = kept(folder, key)
    if artefact is None:
        with replacing_folder(folder) as partial:
            cache = onnx.folder.with_name(f"timings-{value_digest(asdict(machine))[:16]}.cache")
            build_engine(onnx.folder / MODEL_FILE, partial / PLAN_FILE, ranges, settings, cache, progress)
            write_stamp(partial, key, record)
        artefact = read_stamp(folder)
    progress(1)
    return artefact
