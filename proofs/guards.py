"""Our own guards are real: each is taken out of a copy of the program, and a test of the project
must turn red.

python proofs/guards.py [--first N]
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forks import room
from record import Proof, show_and_save

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    guard: str
    instead: str
    test: str
    """What must see it: a test, or a proof with its arguments."""


POWER = "proofs/files.py --states 600 --only power"
FAULTS = [
    Fault(
        "no fsync",
        "durable.py",
        "        os.fsync(descriptor)",
        "        pass",
        "tests/test_durable.py -k synced",
    ),
    Fault(
        "no fencing number in the WHERE",
        "store/leases.py",
        "jobs.c.attempt == job.attempt",
        "sa.true()",
        "tests/test_store.py -k fences",
    ),
    Fault(
        "no manifest check",
        "durable.py",
        "    if present != {MANIFEST, *listed}:",
        "    return manifest\n    if present != {MANIFEST, *listed}:",
        "tests/test_durable.py -k damaged",
    ),
    Fault(
        "the random state is forgotten",
        "tuning/checkpoints.py",
        'torch.set_rng_state(tensors.pop("rng"))',
        'tensors.pop("rng")',
        "proofs/crash.py --points 12 --kills 0",
    ),
    Fault(
        "files are not synced before the rename", "durable.py", "        _sync(file)\n", "", POWER
    ),
    Fault(
        "no sync of the parent after a rename",
        "durable.py",
        "    staged.rename(final)\n    _sync(final.parent)",
        "    staged.rename(final)",
        POWER,
    ),
    Fault(
        "new folders are not synced into their parents",
        "durable.py",
        "            _sync(new.parent)\n",
        "",
        POWER,
    ),
    Fault(
        "the optimizer is forgotten",
        "tuning/checkpoints.py",
        "    optimizer.load_state_dict(",
        "    dict(",
        "tests/tuning/test_loop.py -k killed",
    ),
    Fault(
        "a model after a cancel",
        "store/leases.py",
        "if row.status != JobStatus.EVALUATING.value:",
        "if False:",
        "tests/test_store.py -k cancel",
    ),
    Fault(
        "one key, two jobs",
        "store/jobs.py",
        "                if before is not None:\n",
        "                if False:\n",
        "tests/test_store.py -k idempotency",
    ),
    Fault(
        "the order of rows is anybody's",
        "tuning/batches.py",
        "np.random.default_rng([seed, epoch])",
        "np.random.default_rng()",
        "tests/tuning/test_batches.py",
    ),
    Fault(
        "any table may be read",
        "data/served.py",
        "            if name in self._granted\n",
        "",
        "tests/data/test_served.py -k looked",
    ),
    Fault(
        "the open database's own bytes can be read",
        "data/served.py",
        "\"disabled_filesystems='LocalFileSystem'\",",
        "",
        "tests/data/test_served.py -k reach",
    ),
    Fault(
        "a served query may run for ever",
        "data/served.py",
        "if left <= 0 or not selector.select(left):",
        "if not selector.select(60):",
        "tests/data/test_served.py -k only_waits",
    ),
    Fault(
        "a model may ask for its own code",
        "safe_files.py",
        'if k not in ASKING and not k.startswith("_")}',
        "}",
        "tests/test_safe_files.py",
    ),
    Fault(
        "a model that reads both ways is trained",
        "models/loading.py",
        "    if not trial.is_causal:",
        "    if False:",
        "tests/models/test_bases.py -k both_ways",
    ),
    Fault(
        "weights that the library changed are trained",
        "models/loading.py",
        "    if changed := _changed(model, folder):",
        "    if changed := '':",
        "tests/models/test_bases.py -k library_changes",
    ),
    Fault(
        "packed rows lose what their attention is given",
        "models/packed.py",
        "    _must_be_plain(attention_mask, kwargs)",
        "    pass",
        "tests/models/test_bases.py -k would_lose",
    ),
    Fault(
        "rows are packed beyond a layer's window",
        "models/packed.py",
        "== NAME and longest <= _window(model, longest)",
        "== NAME",
        "tests/models/test_text_generation.py -k sliding",
    ),
    Fault(
        "rows are held by a reader that answers otherwise",
        "inference/readers.py",
        "next((k for k in kinds if can_hold(model, k)), WholeReader)",
        "kinds[0]",
        "tests/models/test_bases.py -k held",
    ),
    Fault(
        "a head that is the embedding is trained apart from it",
        "models/loading.py",
        "    _tie(model)",
        "    pass",
        "tests/models/test_bases.py -k stays_it",
    ),
    Fault(
        "layers that share their weights get an adapter each",
        "models/methods/lora.py",
        "uses[id(m.weight)] == 1",
        "True",
        "tests/models/test_bases.py -k share_their_weights",
    ),
    Fault(
        "padding uses up a model's places",
        "inference/readers.py",
        "if self._has_places or not forward.most_places(self._model):",
        "if True:",
        "tests/models/test_bases.py -k counts_its_places",
    ),
    Fault(
        "an architecture that the list does not know is refused",
        "architectures.py",
        "told is None and not _in_library(kind)",
        "told is None",
        "tests/models/test_bases.py -k left_to_the_trial",
    ),
    Fault(
        "the manifest of another folder is taken for a base's file",
        "weights.py",
        "if f.name != durable.MANIFEST",
        "if True",
        "tests/test_weights.py -k from_its_folder",
    ),
    Fault(
        "one damaged base hides the others",
        "catalog.py",
        "found.append((ModelSpec(name, about=str(e)), None))",
        "raise",
        "tests/test_weights.py -k hides_no_other",
    ),
    Fault(
        "SQL brings weights unasked",
        "interfaces/duckdb.py",
        "            raise NotConfirmed(what=offered.told, call=call)",
        "            pass",
        "tests/test_weights.py -k without_the_word",
    ),
    Fault(
        "what a name meant before goes",
        "weights.py",
        'durable.link_to(kept, f"../{before}")',
        "pass",
        "tests/test_weights.py -k meant_before",
    ),
    Fault(
        "a streamed piece is taken back",
        "data/template.py",
        "        while end and ids[end - 1] in self._bytes:",
        "        while False:",
        "tests/data/test_tokenizers.py -k begins",
    ),
    Fault(
        "a full disk ends a job",
        "worker.py",
        "                except DiskFull as e:",
        "                except ZeroDivisionError as e:",
        "tests/acceptance/test_main_job.py -k disk",
    ),
    Fault(
        "a field of a stranger's file may be of any type",
        "safe_files.py",
        "        if not good:",
        "        if False:",
        "tests/test_safe_files.py -k strangers",
    ),
    Fault(
        "a stranger's file may say more than it should",
        "safe_files.py",
        "!= set(data)",
        "> set(data)",
        "tests/test_safe_files.py -k strangers",
    ),
    Fault(
        "a certificate of any precision",
        "documents/certificate.py",
        "if found.precision not in PRECISIONS:",
        "if False:",
        "tests/models/test_certificate.py -k checked",
    ),
    Fault(
        "a clean-up of frozen rows does not wait for a CREATE, nor a CREATE for it",
        "durable.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX)\n",
        "",
        "tests/test_snapshots.py -k looked_already",
    ),
    Fault(
        "frozen rows go though a job's row still names them",
        "durable.py",
        " | set(named)",
        "",
        "tests/test_snapshots.py -k elsewhere",
    ),
    Fault(
        "an option of another task has no effect and says nothing",
        "options.py",
        "if name not in task.reads:",
        "if False:",
        "tests/acceptance/test_another_task.py -k refused_at_the_door",
    ),
    Fault(
        "a stored model is loaded without its proof",
        "inference/opening.py",
        "        registry.must_be_proven(tuned)\n",
        "        pass\n",
        "tests/acceptance/test_main_job.py -k another_base",
    ),
    Fault(
        "probes need not fit each other",
        "tasks/text_generation/probes.py",
        "            found._check()\n",
        "",
        "tests/models/test_certificate.py -k fit",
    ),
    Fault(
        "a tokenizer of any size",
        "data/template.py",
        "> MOST_WORDS:",
        "> 10**12:",
        "tests/data/test_template.py -k more_words",
    ),
    Fault(
        "a CSV field may become another text",
        "data/files.py",
        "[field or None for field in row]",
        "[field.strip() or None for field in row]",
        "tests/data/test_files.py -k text_of_the_file",
    ),
    Fault(
        "a JSON number is written anew",
        "data/files.py",
        "tuple, parse_int=Raw, parse_float=Raw",
        "tuple, parse_int=Raw, parse_float=lambda t: Raw(float(t))",
        "tests/data/test_files.py -k numbers",
    ),
    Fault(
        "a ragged line is passed over",
        "data/files.py",
        "    if ragged:\n",
        "    if False:\n",
        "tests/data/test_files.py -k broken",
    ),
    Fault(
        "a column that is there twice: the last one wins",
        "data/staging.py",
        "            if len(places[name]) > 1:",
        "            if False:",
        "tests/data/test_files.py -k twice",
    ),
    Fault(
        "JSON strings keep their quotes",
        "data/text.py",
        "WHEN 'VARCHAR' THEN CAST({x} AS VARCHAR) ->> '$' ",
        "WHEN 'VARCHAR' THEN CAST({x} AS VARCHAR) ",
        "tests/data/test_text.py -k each_type",
    ),
    Fault(
        "a user's macro takes the place of DuckDB's function",
        "data/text.py",
        'B = "system.main."',
        'B = ""',
        "tests/interfaces/test_duckdb.py -k meets",
    ),
    Fault(
        "half an emoji is written",
        "data/text.py",
        "        return False\n    return True",
        "        return True\n    return True",
        "tests/data/test_text.py -k nothing",
    ),
    Fault(
        "tool calls are left out",
        "data/conversation.py",
        'if m.get(key) not in (None, "", [], {}):',
        "if False:",
        "tests/data/test_conversation.py -k refused",
    ),
    Fault(
        "answers of weight 0 are learnt",
        "data/template.py",
        ' and "weight" not in m\n',
        "\n",
        "tests/data/test_conversation.py -k weight_zero",
    ),
    Fault(
        "an earlier answer is learnt as it was not asked",
        "data/template.py",
        "            if not self.template.begins_as_asked(messages, n):",
        "            if False:",
        "tests/data/test_conversation.py -k cannot_be_learnt",
    ),
    Fault(
        "a large group takes the held-out part",
        "data/split.py",
        "(reached[-1] | reached[-1] << size) & whole",
        "(reached[-1] | reached[-1] << size)",
        "tests/data/test_split.py",
    ),
    Fault(
        "parts are not filled again",
        "phases/prepare.py",
        "            if new[draw] != part:",
        "            if False:",
        "tests/phases/test_prepare.py -k filled_again",
    ),
    Fault(
        "an option that nothing reads",
        "options.py",
        "if not set(possible) & set(by_method[name]):",
        "if False:",
        "tests/test_jobs.py -k does_not_read",
    ),
    Fault(
        "a home's path is read as a URL",
        "settings.py",
        "quote(str(home / 'state.db'))",
        "home / 'state.db'",
        "tests/test_settings.py -k whatever_its_name",
    ),
    Fault(
        "threads share a temporary name",
        "durable.py",
        ".{os.getpid()}.{threading.get_ident()}",
        ".{os.getpid()}",
        "tests/test_durable.py -k many_threads",
    ),
    Fault(
        "four bits that do not come back",
        "models/quantized.py",
        "    return bool(((w_BN - u_BN)",
        "    return True or bool(((w_BN - u_BN)",
        "tests/tuning/test_precision.py -k come_back",
    ),
    Fault(
        "a run that diverges says nothing",
        "tuning/loop.py",
        "or not at.training_loss > DIVERGED * at.first_loss\n",
        "or True\n",
        "tests/tuning/test_loop.py -k diverges",
    ),
    Fault(
        "a training query may write",
        "data/given.py",
        "BEGIN TRANSACTION READ ONLY",
        "BEGIN TRANSACTION",
        "tests/test_home.py -k what_is_bound",
    ),
    Fault(
        "a query is read in another session",
        "data/given.py",
        "            mine.apply(cursor)\n",
        "",
        "tests/data/test_given.py -k users_session",
    ),
    Fault(
        "a temporary table is taken for another one",
        "data/given.py",
        "relations(cursor, self.sql) & mine.temporary",
        "set()",
        "tests/data/test_given.py -k users_session",
    ),
    Fault(
        "one key, other rows",
        "store/rows.py",
        "        content,\n    ]",
        "    ]",
        "tests/test_home.py -k other_rows",
    ),
    Fault(
        "a kill from outside counts",
        "worker.py",
        "            if ended.from_outside:",
        "            if False:",
        "tests/test_home.py -k killed_from_outside",
    ),
    Fault(
        "staging of the dead stays",
        "durable.py",
        "(not started or _started(int(process)) != started)",
        "False",
        "tests/test_home.py -k killed_client",
    ),
    Fault(
        "a home of any format",
        "durable.py",
        '    if found.get("format") != FORMAT:',
        "    if False:",
        "tests/test_home.py -k another_format",
    ),
    Fault(
        "equal values share a text",
        "data/text.py",
        "key = type(value), repr(value)",
        "key = type(value), str(hash(value))",
        "tests/data/test_given.py -k equal_values",
    ),
    Fault(
        "a message says a key twice",
        "data/conversation.py",
        "        json.loads(text, object_pairs_hook=_must_be_distinct)\n",
        "        pass\n",
        "tests/data/test_given.py -k dropped_or_guessed",
    ),
    Fault(
        "another home's job is claimed",
        "store/leases.py",
        "mine, lost = jobs.c.home == self.home, ",
        "mine, lost = sa.true(), ",
        "tests/test_homes.py -k only_its_own",
    ),
    Fault(
        "another home's model is repaired away",
        "repair.py",
        "for model in (m for m in store.all_models() if m.home == store.home):\n        folder = home",
        "for model in store.all_models():\n        folder = home",
        "tests/test_homes.py -k neither_repaired",
    ),
    Fault(
        "another home's job is removed",
        "service/core.py",
        "        if job.home != self.store.home:\n",
        "        if False:\n",
        "tests/test_homes.py -k neither_repaired",
    ),
    Fault(
        "a copied home works beside the first",
        "home.py",
        'if _is_home(Path(marker["place"]), marker["id"], home):',
        "if False:",
        "tests/test_homes.py -k copied",
    ),
    Fault(
        "a lost store is a new one",
        "home.py",
        "    if worked or (found and forgotten):",
        "    if False:",
        "tests/test_homes.py -k lost_store",
    ),
    Fault(
        "a repair is not written down",
        "repair.py",
        '    durable.write_json(place / RECORD, {"actions": actions})\n',
        "",
        "tests/test_homes.py -k undone_whole",
    ),
    Fault(
        "a changed row is shown",
        "schema.py",
        '"" if row["seal"] == seal_of(table, row, is_read=True) else',
        '"" if True else',
        "tests/test_damage.py -k any_column",
    ),
    Fault(
        "one damaged row blocks the others",
        "schema.py",
        "        return Unreadable()",
        "        raise",
        "tests/test_damage.py -k left_out",
    ),
    Fault(
        "a folder that is being made is nobody's",
        "durable.py",
        "        owner = folder / _own(staged).name\n",
        "        owner = folder / OWNER\n",
        "tests/test_homes.py -k nothing_unowned",
    ),
    Fault(
        "a model is removed beside a job that waits for it",
        "service/models.py",
        "                raise LineAwaited(",
        "                LineAwaited(",
        "tests/test_homes.py -k waits_for",
    ),
    Fault(
        "a job loses its model's origin",
        "store/jobs.py",
        "                raise JobHasModel(",
        "                JobHasModel(",
        "tests/test_homes.py -k name_is_free",
    ),
    Fault(
        "answers that have a price are given away",
        "service/answers.py",
        "                raise UsageNotRecorded(",
        "                UsageNotRecorded(",
        "tests/test_homes.py -k cannot_be_written",
    ),
    Fault(
        "a table is read whole",
        "store/tables.py",
        ".order_by(*keys).limit(size)",
        ".order_by(*keys)",
        "tests/test_homes.py -k page_at_a_time",
    ),
    Fault(
        "a damaged row stops a sweep",
        "worker.py",
        "except (UnknownJob, DamagedRow):",
        "except UnknownJob:",
        "tests/test_damage.py -k no_sweep",
    ),
    Fault(
        "the tables of a CREATE hold everything",
        "data/dataset.py",
        '"memory_limit": f"{MEMORY}B"',
        '"memory_limit": "99GB"',
        "tests/data/test_dataset.py -k grow_with",
    ),
    Fault(
        "long rows have no room",
        "data/dataset.py",
        "        _make_room(own, file)\n",
        "",
        "tests/data/test_dataset.py -k longer_than",
    ),
    Fault(
        "a flag that is neither true nor false",
        "schema.py",
        "lambda v: bool(v) if v in (0, 1) else v",
        "lambda v: bool(v)",
        "tests/test_damage.py -k neither",
    ),
    Fault(
        "another version of a line is removed",
        "registry.py",
        "    if row is None:\n        raise UnknownModel(name=name, closest=closest(name, store.model_names()))\n    return _tuned",
        "    if row is None:\n        return resolve(store, home, name)\n    return _tuned",
        "tests/test_homes.py -k removes_nothing",
    ),
    Fault(
        "a home takes rows whose files are elsewhere",
        "home.py",
        "                if (inside and not former) or any(p.exists() for p in _folders_of(home, i))\n",
        "",
        "tests/test_homes.py -k at_the_place",
    ),
    Fault(
        "a child outlives its worker",
        "phases/child.py",
        "prctl(1, signal.SIGKILL)",
        "getpid()",
        "tests/test_worker.py -k worker_is_gone",
    ),
    Fault(
        "a text sees the padding of its neighbours",
        "models/packed_texts.py",
        "o, s = packed.flash(q, k, v, 0.0, False, attn_mask=b.mask(q.dtype), scale=scale)",
        "o, s = packed.flash(q, k, v, 0.0, False, scale=scale)",
        "tests/models/test_packed_texts.py -k alone",
    ),
    Fault(
        "texts beyond a window on both sides are packed",
        "models/packed_texts.py",
        " and (not around or longest <= around // 2)",
        "",
        "tests/models/test_packed_texts.py -k window",
    ),
    Fault(
        "places begin at zero where the padding token counts",
        "models/packed_texts.py",
        "return 0 if padding is None else int(padding) + 1",
        "return 0",
        "tests/models/test_packed_texts.py -k roberta",
    ),
    Fault(
        "which of two texts a token is of is lost",
        "models/packed_texts.py",
        "flat = [k for t in texts for k in t.types or [0] * len(t.ids)]",
        "flat = [0 for t in texts for k in t.ids]",
        "tests/models/test_packed_texts.py -k kinds",
    ),
    Fault(
        "a resumed step drops nothing, since a wrapper says that it is training",
        "models/methods/__init__.py",
        "return self._laid_out(self._do.prepare(model, decided)).eval()",
        "return self._laid_out(self._do.prepare(model, decided))",
        "tests/tuning/test_loop.py -k every_part",
    ),
    Fault(
        "what words have learnt is lost when training ends",
        "models/embeddings.py",
        "            whole.weight[read.tokens_R] = read.weight",
        "            pass",
        "tests/models/test_embeddings.py",
    ),
    Fault(
        "an embedding that is the output too is cut to what is read",
        "models/embeddings.py",
        "return found if len(uses) == 1 else None",
        "return found",
        "tests/models/test_embeddings.py -k left_alone",
    ),
    Fault(
        "a word that no row holds is looked up as another",
        "models/embeddings.py",
        "return torch.where(known[..., None], trained, F.embedding(ids, self._others_VD))",
        "return trained",
        "tests/models/test_embeddings.py -k whole_training",
    ),
    Fault(
        "a last layer that needs all tokens is given the first ones",
        "models/packed_texts.py",
        "        setattr(plain, FIRSTS, _can_leave_others(plain))",
        "        setattr(plain, FIRSTS, True)",
        "tests/models/test_packed_texts.py -k alone",
    ),
    Fault(
        "equal texts of a step are given each other's answers",
        "models/classifier.py",
        "return found[torch.tensor([places[key] for key in keys])]",
        "return found[torch.arange(len(keys)) % len(found)]",
        "tests/models/test_packed_texts.py -k equal_texts",
    ),
    Fault(
        "what stands between two separators is dropped",
        "data/text_classification.py",
        'json.dumps([n.strip() for n in (label or "").split(separator)])',
        'json.dumps([n.strip() for n in (label or "").split(separator) if n.strip()])',
        "tests/tasks/test_text_classification.py -k in_one_text",
    ),
    Fault(
        "a base is kept whose prompts cannot be written",
        "weights.py",
        "        ready.task_spec.rules.preprocessing(ready)  # what CREATE would refuse is not kept\n",
        "",
        "tests/test_weights.py -k no_base_is_refused",
    ),
    Fault(
        "words that no row holds do not decay",
        "phases/train.py",
        "set() if training.decided.weight_decay else task.words(rows)",
        "task.words(rows)",
        "tests/tasks/test_text_classification.py -k no_row_holds",
    ),
    Fault(
        "texts are packed where there is dropout",
        "models/classifier.py",
        "    if not dropout:\n",
        "    if True:\n",
        "tests/tasks/test_text_classification.py -k dropout",
    ),
    Fault(
        "what is kept of texts is another order's",
        "models/features.py",
        "key=lambda item: item[0])",
        "key=lambda item: -len(item[0][0]))",
        "tests/models/test_features.py -k to_the_bit",
    ),
    Fault(
        "damaged states are believed",
        "models/features.py",
        "        durable.verify(place)\n",
        "",
        "tests/models/test_features.py -k to_the_bit",
    ),
    Fault(
        "frozen layers run all the same",
        "models/skipping.py",
        "undone.enter_context(doing(layer, hand_on))",
        "pass",
        "tests/models/test_features.py -k run_once",
    ),
    Fault(
        "the temperature is not in the saved head",
        "tasks/text_classification/__init__.py",
        'head.fold(model, facts["temperature"])',
        "pass",
        "tests/tasks/test_text_classification.py -k calibrated",
    ),
    Fault(
        "a label that training lacks is the first one",
        "tasks/text_classification/losses.py",
        "return torch.where(target_B < 0, guess, losses_B), row_B",
        "return losses_B, row_B",
        "tests/tasks/test_text_classification.py -k unheard",
    ),
    Fault(
        "the head learns as slowly as the rest",
        "models/layers.py",
        "return found | dict.fromkeys(head.trained(model), head_rate)",
        "return found",
        "tests/tasks/test_text_classification.py -k own_rate",
    ),
    Fault(
        "every tensor learns at one rate",
        "tuning/loop.py",
        'group["lr"] = rate * group.get("multiple", 1.0)',
        'group["lr"] = rate',
        "tests/tuning/test_loop.py -k multiples",
    ),
    Fault(
        "what is frozen is trained",
        "models/methods/full.py",
        "parameter.requires_grad_(name not in kept)",
        "parameter.requires_grad_(True)",
        "tests/tasks/test_text_classification.py -k does_not_move",
    ),
    Fault(
        "a classifier's probes that differ count as equal",
        "tasks/text_classification/probes.py",
        "int((apart <= EQUAL).sum())",
        "len(apart)",
        "tests/tasks/test_text_classification.py -k another_model",
    ),
    Fault(
        "an adapter may bring parts beside its head",
        "models/lora_files.py",
        "    if not kept <= saved <= (kept | ADDED if kept else kept):",
        "    if False:",
        "tests/tasks/test_text_classification.py -k no_other_part",
    ),
    Fault(
        "a base's own head is forgotten",
        "models/classifier.py",
        "        if label in old:",
        "        if False:",
        "tests/tasks/test_text_classification.py -k same_name",
    ),
    Fault(
        "what is kept of a language model's rows is not used",
        "tasks/text_generation/__init__.py",
        "    with kept.standing_in(model, encoded, batch):",
        "    if True:",
        "tests/tuning/test_kept_states.py -k whole_pass",
    ),
]


def seen(fault: Fault, folder: Path) -> bool:
    """Whether the test is red without the guard. The guard must be there, else the list is out of
    date."""
    shutil.copytree(
        ROOT / "src",
        folder / "src",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    file = folder / "src" / "tunesmith" / fault.file
    text = file.read_text()
    if text.count(fault.guard) != 1:
        raise SystemExit(
            f"the guard of {fault.name!r} stands {text.count(fault.guard)} times in {fault.file}: mend proofs/guards.py"
        )
    file.write_text(text.replace(fault.guard, fault.instead))
    words = fault.test.split()
    command = (
        [sys.executable, *words]
        if words[0].startswith("proofs/")
        else [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:xdist",
            f"--basetemp={folder / 'pytest'}",
            *words,
        ]
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "PROOF_RESULTS": str(folder / "results.json"),
    }
    log = folder / "log.txt"  # not a pipe: what the fault leaves alive would hold it open
    with log.open("wb") as out:
        ended = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        code = ended.wait()
    with suppress(ProcessLookupError):
        os.killpg(ended.pid, signal.SIGKILL)
    file.write_text(text)
    if code not in (0, 1):
        raise SystemExit(f"{fault.test} ended with {code}: {log.read_text()[-1000:]}")
    return code == 1


def proofs(first: int) -> Iterator[Proof]:
    began, faults, unseen = time.monotonic(), FAULTS[:first], []
    with room() as folder:
        for fault in faults:
            if not seen(fault, Path(folder)):
                unseen.append(fault.name)
                print(f"  not seen: {fault.name}")
    yield Proof(
        f"{len(faults)} guards taken out, one at a time: a test turns red",
        f"{len(faults)}",
        f"{len(faults) - len(unseen)}",
        not unseen,
        time.monotonic() - began,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=len(FAULTS))
    show_and_save(proofs(parser.parse_args().first), "python proofs/guards.py")


if __name__ == "__main__":
    main()
