"""What works on a host, through pyinfra."""

from . import lean as lean
