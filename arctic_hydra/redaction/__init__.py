"""Privacy of what a run prints, writes and sends: secrets are masked, and its files are readable by their owner only."""

from arctic_hydra.redaction.masking import contains_secret as contains_secret
from arctic_hydra.redaction.masking import mask as mask
from arctic_hydra.redaction.masking import redact_override as redact_override
from arctic_hydra.redaction.masking import without_credentials as without_credentials
from arctic_hydra.redaction.process import protect as protect
from arctic_hydra.redaction.process import umask_of_user as umask_of_user
from arctic_hydra.redaction.trees import redact as redact
