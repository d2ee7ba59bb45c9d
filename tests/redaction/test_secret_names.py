"""Names of secrets are recognized in any spelling, and ordinary names are not."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from arctic_hydra.component import registered
from arctic_hydra.config import Run
from arctic_hydra.redaction.secret_names import is_secret_name, is_secret_parameter

SECRET = """token hf_token hfToken HF_TOKEN accessToken access-token ACCESSTOKEN x-auth-token token2 key apikey api_key apiKey APIKey
API_KEY api-key sshkey secretAccessKey aws_access_key_id password passwd db_passwd PGPASSWORD db_pass passphrase pwd secret
secrets clientSecret client_secret_value password_2 credential credentials auth basic_auth authorization Authorization bearer
cookie jwt hub_tokens api_keys GITHUB_TOKEN WANDB_API_KEY MLFLOW_TRACKING_PASSWORD AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN
user_token id_token user_pass user_keys PASS SSHPASS MYAPP_PASS PGPASS SESSIONID DEPLOY_TOKEN_STAGING
 MY_PAT GH_PAT GITLAB_PAT TOKEN_HF HF_TOKEN_READ auth_header cookies
pass mysql_pass pgpass redis_pass creds aws_creds cred passkey oauth google_oauth oauth2
SENTRY_DSN DATABASE_DSN CONNECTION_STRING connectionString SLACK_WEBHOOK webhook_url"""
ORDINARY = """tokenizer tokens max_tokens min_tokens add_tokens add_special_tokens eot_tokens pad_token eos_token padToken bos-token
unk_token cls_token image_token audio_token_index tokens_per_second token_loss mix_by_tokens supervised_tokens keep_key keys
content_key role_key sort_key group_key num_key_value_heads keyword monkey pad_token_id passes rows_in_pass single_pass second_pass two_pass
preference_key
document_key author
authors attention password_file credentials_path key_size return_class_token eostoken TOKENIZERS_PARALLELISM
SSH_AUTH_SOCK KEYBOARD loss eval/loss tokens/step tool_token call_token python_token latent_token speaker_token id_key row_key
pass@1 eval/pass pass_at_k num_pass first_pass forward_pass backwardPass pass_rate bypass encompass compass credits creds_file redis_keys
score_key rng_key prng_key projection_prng_key user_key userKey userkey state_key share_att_key experiment_key"""
METRICS = """step loss lr grad_norm tokens supervised_tokens padding_tokens tokens_per_second step_seconds memory_gib mfu tflops
skipped_steps eval/loss no_supervised_token eval/perplexity eval/accuracy non_finite""".split()


@pytest.mark.parametrize(("names", "secret"), [(SECRET, True), (ORDINARY, False)])
def test_case_and_separators_are_ignored(names, secret):
    assert [name for name in names.split() if is_secret_name(name) is not secret] == []


def test_signatures_in_urls_are_secret():
    assert all(map(is_secret_parameter, ("sig", "X-Amz-Signature", "X-Goog-Credential", "key", "access_token")))
    assert not any(map(is_secret_parameter, ("design", "page", "charset")))


def test_no_key_of_a_component_an_option_or_a_metric_is_taken_for_a_secret(repository):
    keys = {item.name for cls in (Run, *registered().values()) for item in fields(cls)}
    files = [*(repository / "conf").rglob("*.yaml"), *(repository / "launchers").rglob("*.yaml")]
    keys |= {key for path in files for key in _keys(yaml.safe_load(Path(path).read_text()))}
    keys |= set((repository / "tests/golden/config_keys.txt").read_text().replace(".", "\n").split())
    assert len(keys) > 150
    assert [key for key in sorted({*keys, *METRICS}) if is_secret_name(key)] == []


def test_no_default_of_a_model_or_of_deepspeed_is_taken_for_a_secret():
    from transformers import GenerationConfig, LlamaConfig, Qwen3MoeConfig, SEWDConfig

    from arctic_hydra.assets import deepspeed_keys

    table = json.loads(Path(deepspeed_keys.__file__).with_suffix(".json").read_text())
    defaults = [config.to_dict() for config in (GenerationConfig(), LlamaConfig(), Qwen3MoeConfig(), SEWDConfig())]
    assert [key for key in [*_keys(table), *_keys(defaults)] if is_secret_name(key)] == ["api_key"]  # Comet's


def _keys(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key).rpartition("/")[2].partition("@")[0]
            yield from _keys(value)
    elif isinstance(node, list):
        for item in node:
            yield from _keys(item)
