"""MLflow's model registry: versions of generators, and an alias for the one that covers most."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from ganray.integrations.mlflow_runs import Run, existing_store

ALIAS = "best"
"""Alias of the version with the highest coverage: ``models:/NAME@best``."""
_COVERAGE = "ganray.coverage"


def register(
    run: Run, model_uri: str, name: str, coverage: float, basis: Mapping[str, object]
) -> str:
    """Register a logged model and return the outcome, in one line.

    It gets the alias if no version has it, or if its coverage is higher than that of the version
    that has it and both were measured in the same way. A model that is a version already is not
    registered again.

    Args:
        run: Run that logged the model.
        model_uri: ``models:/`` URI with the id of the logged model.
        name: Name of the registered model, which is created if it does not exist.
        coverage: Coverage in the report.
        basis: What coverage depends on beside the model: extractor, reference images, samples.

    Raises:
        UserError: The store cannot be reached, or the user may not change this model.
    """
    tags = {_COVERAGE: str(float(coverage))} | {f"ganray.{k}": str(v) for k, v in basis.items()}
    with existing_store(run.uri) as client:
        mlflow.set_tracking_uri(run.uri)  # where a local registry looks for the logged model
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}' and source_path = '{model_uri}'")
        number = next((str(version.version) for version in versions), None)
        if number is None:
            model_id = model_uri.removeprefix("models:/")  # which servers demand, beside the URI
            created = client.create_model_version(name, model_uri, run.run_id, model_id=model_id)
            number = str(created.version)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        holder = client.get_registered_model(name).aliases.get(ALIAS)
        outcome, was = f"models:/{name}/{number} has coverage {coverage:.3g}", ""
        if holder is not None and str(holder) != number:
            other = client.get_model_version(name, holder).tags
            if differing := [k for k in basis if other.get(f"ganray.{k}") != tags[f"ganray.{k}"]]:
                reason = f"measured with other {differing[0]}"
                return f"{outcome}; version {holder}, {reason}, stays @{ALIAS}"
            other_coverage = float(other[_COVERAGE])
            if coverage <= other_coverage:
                return f"{outcome}; version {holder}, with {other_coverage:.3g}, stays @{ALIAS}"
            was = f" instead of version {holder}, with {other_coverage:.3g}"
        client.set_registered_model_alias(name, ALIAS, number)
        return f"{outcome} and is @{ALIAS}{was}"
