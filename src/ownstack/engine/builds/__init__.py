"""Builds: recipes that make an artefact on the controller from locked inputs."""
