"""Evaluate a trained generator, compare two, or evaluate any images as samples."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from ganray import log
from ganray.commands.load_generator import TrainedGenerator, list_runs, load_generator
from ganray.config.commands import EvaluateConfig, home_folder
from ganray.config.schema import Config, DataConfig, EvaluationConfig, NetworkConfig
from ganray.data import prepare
from ganray.data.format import Shape
from ganray.data.prepare import DatasetPlan
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.datasets import locate_datasets
from ganray.evaluation.reference import (
    ReadImages,
    ReferenceSet,
    check_comparable,
    prepare_classifier,
    read,
    shuffled_ids,
    usable_count,
)
from ganray.evaluation.report import (
    EvaluationReport,
    conclusion,
    differences,
    evaluate_generator,
    evaluate_samples,
    table,
)
from ganray.evaluation.suite import MIN_IMAGES
from ganray.files import create_folder
from ganray.training.journal import history

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateConfig) -> None:
    """Evaluate one generator, or two with their differences, and add the reports to MLflow.

    Without a run or images, list the runs there are.

    Raises:
        UserError: The input is invalid; raised before anything is measured.
    """
    home = home_folder(options.home)
    if options.images and options.against:
        _evaluate_images(options, options.images, options.against, home)
        return
    if not options.run:
        logger.info(list_runs(home, options.storage))
        return
    names = [options.run] + ([options.against] if options.against else [])
    generators = [
        load_generator(name, home, options.tracking_uri, options.storage) for name in names
    ]
    labels = [generator.label for generator in generators]
    if labels[1:] == labels[:1]:  # runs of one name in two homes
        labels[1] += "-against"
    folders = [  # created before the work, in case one cannot be
        generator.output_folder(
            "evaluation",
            options.out / label if options.out and options.against else options.out,
            home,
        )
        for generator, label in zip(generators, labels, strict=True)
    ]
    run = generators[0].find_run() if options.register else None
    config = _reference_config(generators[0], options)
    datasets = locate_datasets(config)
    extra = datasets.held_out and [datasets.images, datasets.held_out.plan]
    if extra and not all(plan.ready or plan is datasets.reference for plan in extra):
        datasets = replace(datasets, held_out=None)  # do not convert images for memorization alone
    _check_count(datasets.reference.count, datasets.reference.has_classifier)
    digest = datasets.reference_digest()
    with ExitStack() as stack:
        images = stack.enter_context(datasets.open_reference())
        assets = datasets.assets(datasets.prepare_classifier())
        reference = assets.reference_set(config, images)
        read_training = stack.enter_context(datasets.open_training()) if assets.held_out else None
        reports = []
        for generator in generators:
            _check_shape(generator, reference.shape)
        for generator in generators:
            is_known = generator.config.data.identity() == generators[0].config.data.identity()
            used = reference if is_known else replace(reference, held_out="")
            reports.append(_evaluate(generator, used, read_training, options))
    for generator, folder, report in zip(generators, folders, reports, strict=True):
        source = {"run": generator.config.name, "source": generator.source, "reference": digest}
        files = _write(report, source, folder, options)
        generator.log(files, "evaluation")
    if run and options.register:
        metrics = reports[0].metrics
        basis = {"extractor": metrics.extractor, "reference": digest, "samples": metrics.samples}
        generators[0].register(run, options.register, metrics["coverage"], basis)
    if options.against:
        logger.info(f"\n{labels[0]} minus {labels[1]}, with 95 % intervals")
        for name, difference in differences(reports[0].metrics, reports[1].metrics).items():
            differs = "differ" if difference.low > 0 or difference.high < 0 else ""
            logger.info(f"{name:20s} {difference.brief():>30s}  {differs}".rstrip())


def _evaluate_images(options: EvaluateConfig, path: str, against: str, home: Path) -> None:
    """Evaluate images as samples; no run has a place for the report, so it stays on disk."""
    evaluation = EvaluationConfig(
        report_samples=options.samples, features=options.features, weights=options.weights
    )
    name = _name_of(path)
    data = _image_data(against, options.size)
    samples = replace(_image_data(path, options.size), labels="none")
    # No network is built, and of all kinds an MLP takes images of any size.
    config = Config(home=home, data=data, network=NetworkConfig("mlp"), evaluation=evaluation)
    home.mkdir(parents=True, exist_ok=True)
    # A folder of samples is often filled again, which shards that are kept would hide.
    with TemporaryDirectory(prefix="samples-", dir=home) as temporary, ExitStack() as stack:
        reference_plan = _plan("--against", data, home)
        plan = _plan("--images", samples, Path(temporary))
        if plan.count < MIN_IMAGES:
            raise UserError(f"--images: {plan} are too few; use at least {MIN_IMAGES}")
        check_comparable(plan.image_shape, reference_plan.image_shape, "--size")
        _check_count(reference_plan.count, reference_plan.has_classifier)
        folder = create_folder((options.out or home / "evaluation" / name).expanduser())
        digest = prepare.prepare_dataset(data, reference_plan)
        prepare.prepare_dataset(samples, plan)
        reference_images, images = (
            stack.enter_context(closing(prepare.open_dataset(each, location)))
            for each, location in ((data, reference_plan.location), (samples, plan.location))
        )
        if not reference_plan.has_classifier:
            logger.warning(
                "the reference images have no classes, so samples are compared by their pixels, and"
                " no modes are counted; a folder for each class, or labels, would mend that"
            )
        classifier = prepare_classifier(config, reference_images, digest, local_device())
        reference = ReferenceSet(reference_images, data, classifier, evaluation)
        count = reference.usable_count(min(options.samples, len(images)), parts=2)
        if not count:
            raise _too_few(len(reference.images), bool(reference.classifier))
        ids = shuffled_ids(images)
        report = evaluate_samples(
            lambda rows: read(samples, images, ids[rows]),
            count,
            reference,
            resamples=options.resamples,
            title=name,
        )
    about = {"source": log.redact(path), "against": log.redact(against), "reference": digest}
    _write(report, about, folder, options)


def _name_of(path: str) -> str:
    """Return the name of samples, which names a folder: without secrets, and no parent folder."""
    if "://" in path:  # in http://user:password@host, the last part is not a name only
        place = re.split(r"[?#]", log.redact(path))[0].partition("://")[2].rstrip("/")
        name = place.rpartition("@")[2].rpartition("/")[2]
    else:
        file = Path(path).expanduser().resolve()
        name = file.stem if file.is_file() else file.name
    return "samples" if name in ("", ".", "..") else name


def _image_data(path: str, size: int) -> DataConfig:
    sources = {".npz": "numpy", ".npy": "numpy", ".h5": "hdf5", ".hdf5": "hdf5"}
    source = sources.get(Path(path).suffix.lower(), "folder")
    return DataConfig(cast(Any, source), path, size=size)


def _plan(option: str, data: DataConfig, home: Path) -> DatasetPlan:
    """Locate and print the images that an option names."""
    try:
        plan = prepare.plan_dataset(data, home)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if 0 in plan.image_shape:
        raise UserError(f"{option}: {plan} of several sizes; give one for all, such as --size 64")
    logger.info(f"{option.removeprefix('--'):12s}{plan}")
    return plan


def _write(
    report: EvaluationReport, source: dict[str, str], folder: Path, options: EvaluateConfig
) -> list[Path]:
    """Print a report, write it to a folder, and return the files."""
    rows = table(report.metrics, options.report == "full")
    logger.info(f"\n{source['source']}\n{rows}\n{conclusion(report)}")
    files = report.write(folder, source)
    logger.info(f"report      {files[0]}\npage        {files[1]}")
    return files


def _reference_config(generator: TrainedGenerator, options: EvaluateConfig) -> Config:
    """Return the run's config, changed to find its reference images on this machine."""
    config = generator.config
    config = replace(config, evaluation=replace(config.evaluation, report_samples=options.samples))
    if generator.folder is None:  # the run's home may be on another machine
        config = replace(config, home=home_folder(options.home))
    if options.data_root:
        config = replace(config, data=replace(config.data, root=options.data_root))
    return config


def _check_shape(generator: TrainedGenerator, reference: Shape) -> None:
    try:
        check_comparable(generator.image_shape(), reference)
    except UserError as error:
        raise UserError(f"{generator.source}: {error}") from error


def _evaluate(
    generator: TrainedGenerator,
    reference: ReferenceSet,
    read_training: ReadImages | None,
    options: EvaluateConfig,
) -> EvaluationReport:
    report = evaluate_generator(
        generator.config,
        generator.G,
        generator.classes,
        reference,
        samples=options.samples,
        resamples=options.resamples,
        title=generator.label,
        saturation=history(generator.config.run_folder(), "discriminator/saturation")[1],
        read_training=read_training,
    )
    if report is None:
        raise _too_few(len(reference.images), bool(reference.classifier))
    return report


def _check_count(images: int, has_classifier: bool) -> None:
    """Raise UserError if there are too few reference images, as far as is known before reading."""
    if not usable_count(images, has_classifier, MIN_IMAGES, parts=2):
        raise _too_few(images, has_classifier)


def _too_few(images: int, has_classifier: bool) -> UserError:
    reason = (
        f"{4 * MIN_IMAGES}, as the classifier is trained on half of them and a quarter is the"
        if has_classifier
        else f"{2 * MIN_IMAGES}, as half of them are the"
    )
    return UserError(f"{images} reference images are too few; use at least {reason} control")
