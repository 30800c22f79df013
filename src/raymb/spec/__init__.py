"""What the user asked for, as one frozen object; looks at nothing outside its input.

May import storage and what is below it; no framework.
"""

from raymb.spec.interpolation import without_interpolation
from raymb.spec.load import load_section, load_spec, spec_as_yaml, spec_from_json, spec_to_json, without_secrets
from raymb.spec.sections import FLAG_THAT_OWNS, SECTION_OF_FLAG, SECTIONS, RunSpec
from raymb.spec.sparse import differing_sections, sparse_yaml
from raymb.spec.training import worker_range

__all__ = [
    "FLAG_THAT_OWNS",
    "SECTIONS",
    "SECTION_OF_FLAG",
    "RunSpec",
    "differing_sections",
    "load_section",
    "load_spec",
    "sparse_yaml",
    "spec_as_yaml",
    "spec_from_json",
    "spec_to_json",
    "without_interpolation",
    "without_secrets",
    "worker_range",
]
