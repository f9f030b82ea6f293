"""Rules of the exchange, and of what each peer keeps of what it learned."""

from __future__ import annotations

from tests.support.mutants import Mutant

_CARRIED = "node.test_carried:"

CARRIED = (
    Mutant(
        "nobody votes for another entry than its own",
        "node.rounds",
        "            return all(result in piece.results for piece, result in pairs)\n",
        "            return True\n",
        (_CARRIED + "test_no_record_of_another_result_could_be_the_rounds",),
    ),
    Mutant(
        "an entry that another tells of is refused",
        "node.inbox",
        "        if place.facts.carried:\n",
        "        if False:\n",
        (_CARRIED + "test_a_result_that_another_tells_of_is_refused",),
    ),
    Mutant(
        "a commitment carries what it names",
        "node.inbox",
        "    if commitment.payload_root != digest(carried):\n",
        "    if False:\n",
        (_CARRIED + "test_a_commitment_that_carries_no_contribution_is_refused",),
    ),
    Mutant(
        "a commitment carries a sound contribution",
        "node.inbox",
        "    return carries(carried)\n",
        '    return ""\n',
        (_CARRIED + "test_a_commitment_that_carries_no_contribution_is_refused",),
    ),
    Mutant(
        "an entry names the reducer that would have been drawn",
        "node.rounds",
        "_job(state, index, state.decided or (), state.reducers(index)[0])",
        "_job(state, index, state.decided or (), state.reducers(index)[1])",
        (_CARRIED + "test_everybody_reduces_the_whole_set_at_once_and_the_same_way",),
    ),
    Mutant(
        "who is a few short rounds behind is waited for",
        "node.protocol_state",
        "near = self.chain.open_rounds if self.settings.carries is None else CAUGHT_UP_ROUNDS",
        "near = self.chain.open_rounds",
        (_CARRIED + "test_a_member_some_rounds_behind_is_waited_for",),
    ),
)

EXCHANGE = (
    Mutant(
        "the standby takes over from a late worker",
        "node.rounds",
        "late = wait.waited_s > _RESULT_PATIENCE * wait.patience_s or wait.is_gone(worker)",
        "late = False",
        ("node.test_rounds:test_the_standby_gets_data_only_once_the_worker_is_late",),
    ),
    Mutant(
        "nobody waits for the payload of a peer that is gone",
        "node.rounds",
        "coming = any(_owes(c, index, piece) and not wait.is_gone(c.peer) for c in members)",
        "coming = any(_owes(c, index, piece) for c in members)",
        ("node.test_rounds:test_nobody_waits_for_the_payload_of_a_peer_that_is_gone",),
    ),
    Mutant(
        "nobody waits for what is withheld",
        "node.rounds",
        "return commitment.id not in piece.arrived and index not in commitment.withheld",
        "return commitment.id not in piece.arrived",
        ("node.test_rounds:test_nobody_waits_for_what_is_withheld",),
    ),
    Mutant(
        "a slow link has nothing to reduce",
        "node.rounds",
        "tuple(peer for peer in order if peer not in names) or slow",
        "tuple(order)",
        ("node.test_rounds:test_a_slow_link_has_nothing_to_reduce",),
    ),
    Mutant(
        "what is withheld is not sent",
        "node.rounds",
        "elif index not in mine.withheld:",
        "else:",
        ("node.test_rounds:test_what_is_withheld_is_not_sent_and_the_rest_is",),
    ),
    Mutant(
        "a reducer waits for all senders until its deadline",
        "node.rounds",
        "    if not senders or (coming and wait.waited_s <= patience_s):\n",
        "    if not senders:\n",
        ("node.test_rounds:test_the_worker_goes_without_those_who_miss_its_deadline",),
    ),
    Mutant(
        "a reducer does not wait for ever",
        "node.rounds",
        "    if not senders or (coming and wait.waited_s <= patience_s):\n",
        "    if not senders or coming:\n",
        ("node.test_rounds:test_the_worker_goes_without_those_who_miss_its_deadline",),
    ),
    Mutant(
        "a transfer that failed is tried again",
        "node.protocol",
        "            place.slices[index].sent_to.discard(to)\n",
        "            pass\n",
        ("node.test_elections:test_what_could_not_be_transferred_is_tried_again",),
    ),
    Mutant(
        "a result that could not be fetched is asked for again",
        "node.protocol",
        "        self.state.pursuit.fetching.pop(root, None)\n\n    def prepared(",
        "        self.state.pursuit.fetching[root] = 1e18\n\n    def prepared(",
        ("node.test_elections:test_what_could_not_be_transferred_is_tried_again",),
    ),
    Mutant(
        "late results are announced by all who hold them",
        "node.taking_part",
        "if (late or result.reducer == state.me) and result.root in state.held:",
        "if result.reducer == state.me and result.root in state.held:",
        ("node.test_elections:test_late_results_are_announced_by_whoever_holds_them",),
    ),
    Mutant(
        "commitments are sent again",
        "node.taking_part",
        "    if own and place.decided is None and now >= place.repeat_at:\n",
        "    if False:\n",
        ("node.test_elections:test_an_own_commitment_is_sent_again_until_the_set_is_decided",),
    ),
    Mutant(
        "a trainer that is behind is asked for what it has",
        "node.taking_part",
        "    if not late or state.me in place.commits or place.decided or not place.takes(state.me):\n",
        "    if True:\n",
        ("node.test_elections:test_a_trainer_that_is_behind_is_asked_for_what_it_has",),
    ),
    Mutant(
        "a commitment is on disk before it is sent",
        "node.protocol",
        "return [Store(updates), Send(Commit(commitment)), *self._advance(now)]",
        "return [Send(Commit(commitment)), Store(updates), *self._advance(now)]",
        ("2 quiet",),
    ),
    Mutant(
        "a round that opens again repeats its commitment",
        "node.protocol",
        "        if own is not None:\n            self._inbox.note(place, own, now)\n            return [Send(Commit(own))]\n",
        "",
        ("node.test_protocol:test_a_restart_repeats_its_commitment_and_wants_no_second_one",),
    ),
    Mutant(
        "a result is on disk before it is announced",
        "node.protocol",
        "return [Store(storage_keys.result_updates(result.root)), *told, *self._advance(now)]",
        "return [*told, Store(storage_keys.result_updates(result.root)), *self._advance(now)]",
        ("2 quiet",),
    ),
    Mutant(
        "a decided set is on disk",
        "node.storage_keys",
        '    return {f"set/{key.number}/{key.base.hex()}": pack(value)}',
        "    return {}",
        ("node.test_protocol:test_a_decided_set_is_told_to_who_still_votes_also_after_a_restart",),
    ),
    Mutant(
        "tokens count once, for those whose payload is in",
        "node.outcomes",
        "sum(c.tokens for i, c in enumerate(commitments) if i in used)",
        "sum(c.tokens for piece in slices for c in commitments)",
        ("1 quiet",),
    ),
)

ONE_RULE = (
    Mutant(
        "included is said slice by slice",
        "optim.store",
        "            if included and payloads:\n",
        "            if payloads and any(outcome.included):\n",
        ("optim.test_store:test_a_long_random_life_loses_nothing_and_counts_nothing_twice",),
    ),
    Mutant(
        "what was not included stays in the trainer's values",
        "optim.store",
        "            start = snapshot if included else own.theta\n",
        "            start = snapshot\n",
        ("optim.test_store:test_included_is_decided_slice_by_slice",),
    ),
    Mutant(
        "the residual is as it was where nothing was included",
        "optim.store",
        "            else:\n                after[low:high] = own.residual[low:high]\n",
        "",
        ("optim.test_store:test_included_is_decided_slice_by_slice",),
    ),
    Mutant(
        "what is handed over follows the state's changes",
        "optim.store",
        "                    handed.snapshot += delta\n",
        "                    pass\n",
        ("optim.test_store:test_a_long_random_life_loses_nothing_and_counts_nothing_twice",),
    ),
    Mutant(
        "what is handed over follows what is owed",
        "optim.store",
        "                residuals.append(handed.after)\n",
        "                pass\n",
        ("optim.test_store:test_a_long_random_life_loses_nothing_and_counts_nothing_twice",),
    ),
    Mutant(
        "a record that is given up is owed again",
        "optim.store",
        "again = (self._owed_by(outcome, 1, payloads=True) for outcome in lost)",
        "again = (self._owed_by(outcome, 1, payloads=False) for outcome in lost)",
        ("optim.test_store:test_a_record_given_up_is_owed_again",),
    ),
    Mutant(
        "what a late contribution held leaves the residual",
        "optim.store",
        "            taken += self._owed_by(outcome, -1, payloads=not in_trainer)\n",
        "            taken += self._owed_by(outcome, -1, payloads=False)\n",
        ("optim.test_store:test_a_restart_sends_from_the_residual_what_the_trainer_lost",),
    ),
    Mutant(
        "a reducer owes what its encoding lost",
        "optim.store",
        "                yield slice(low, high), loss if sign < 0 else -loss\n",
        "                pass\n",
        ("optim.test_store:test_a_long_random_life_loses_nothing_and_counts_nothing_twice",),
    ),
    Mutant(
        "a later hand-over of a fragment takes the drift over",
        "optim.store",
        "                earlier.snapshot = earlier.after = None\n",
        "                pass\n",
        ("optim.test_store:test_a_later_hand_over_of_the_fragment_takes_the_drift_over",),
    ),
    Mutant(
        "a trainer that has merges to apply hands nothing over",
        "optim.store",
        "        if version != own.version or key in self._handed:\n",
        "        if key in self._handed:\n",
        ("optim.test_store:test_a_trainer_that_has_not_merged_yet_hands_nothing_over",),
    ),
    Mutant(
        "a contribution of a round given up is forgotten",
        "optim.store",
        "        self._handed.pop(key, None)\n\n    def recall(",
        "        pass\n\n    def recall(",
        ("optim.test_store:test_a_round_is_handed_over_once",),
    ),
)
