"""Rules that bound what one member makes the others hold, and how far it sways them alone."""

from __future__ import annotations

from tests.support.mutants import Mutant

BOUNDS = (
    Mutant(
        "a payload has few cells, however long it is",
        "optim.codec_layers",
        "not min(LEAST, left) <= last + 1 <= left",
        "not 1 <= last + 1 <= left",
        ("optim.test_codec_layers:test_other_cells_are_refused",),
    ),
    Mutant(
        "nothing is added up before all cells of a payload are checked",
        "optim.codec_layers",
        "        for place in places:\n            place.codec.require(place.payload, place.values.stop - place.values.start)\n",
        "",
        ("optim.test_codec_layers:test_a_bad_cell_behind_good_ones_changes_nothing",),
    ),
    Mutant(
        "a result loses what the median contributor's choice would",
        "optim.layer_bits",
        "lost[(len(lost) - 1) // 2]",
        "lost[-1]",
        (
            "optim.test_layer_bits:test_a_result_loses_what_the_lower_median_contributors_choice_would_for_no_more_bytes",
        ),
    ),
    Mutant(
        "what was told of and never followed is forgotten beyond its room",
        "node.chain",
        "if self._aside.total_bytes <= MAX_ASIDE_BYTES:",
        "if True:",
        (
            "node.test_hostile_members:test_whoever_told_of_most_that_had_to_be_forgotten_is_told_of",
        ),
    ),
    Mutant(
        "with a record goes all that follows it",
        "node.aside",
        "if left > MAX_ASIDE_BYTES // 2 or parent_of(name) in gone:",
        "if left > MAX_ASIDE_BYTES // 2:",
        ("node.test_hostile_members:test_paths_that_one_member_makes_up_are_forgotten_again",),
    ),
    Mutant(
        "the path that is wanted stays",
        "node.aside",
        "            if name in wanted:\n                continue\n",
        "",
        ("node.test_hostile_members:test_paths_that_one_member_makes_up_are_forgotten_again",),
    ),
    Mutant(
        "a path that beats nothing is asked for no further",
        "node.following",
        "    if not wanted:  # it",
        "    if False:  # it",
        (
            "node.test_hostile_members:test_a_path_that_beats_nothing_is_asked_for_no_further_and_seldom",
        ),
    ),
    Mutant(
        "who has just come to its head follows no branch of few",
        "node.following",
        "return just_moved or (idle_s",
        "return (idle_s",
        (
            "node.test_elections:test_who_has_just_come_to_its_head_follows_no_branch_of_few_from_it",
        ),
    ),
    Mutant(
        "who hears a quorum of others waits for what they tell",
        "node.following",
        "return just_moved or (idle_s < patience_s and",
        "return just_moved or (idle_s < 0 and",
        (
            "node.test_elections:test_who_hears_a_quorum_of_others_lets_them_tell_what_they_know_for_a_while",
        ),
    ),
    Mutant(
        "nobody waits for ever for what a quorum of others does not tell",
        "node.following",
        "return just_moved or (idle_s < patience_s and",
        "return just_moved or (idle_s < 1e9 and",
        (
            "node.test_elections:test_who_hears_a_quorum_of_others_lets_them_tell_what_they_know_for_a_while",
        ),
    ),
    Mutant(
        "an abort says nothing new",
        "node.following",
        "return record == abort_record(parent)",
        "return True",
        ("node.test_following_checks:test_an_abort_says_nothing_new",),
    ),
    Mutant(
        "a round has a result for each slice",
        "node.following",
        "return len(record.slices) == slices and senders",
        "return senders",
        (
            "node.test_following_checks:test_a_round_has_one_result_for_each_slice_by_senders_of_its_set",
        ),
    ),
    Mutant(
        "a member puts so many values to the vote of a round",
        "node.rounds",
        "return self.put[proposer] <= MAX_PUT",
        "return True",
        ("node.test_hostile_members:test_a_member_puts_so_many_values_to_the_vote_of_a_round",),
    ),
    Mutant(
        "nobody comes beyond so many attempts",
        "node.inbox",
        "if item.attempt > MAX_ATTEMPT:",
        "if False:",
        ("node.test_hostile_members:test_an_attempt_that_nobody_comes_to_is_refused",),
    ),
    Mutant(
        "whoever asks and does not read makes others hold so much",
        "node.outboxes",
        "while self._total > MAX_TOTAL_BYTES:",
        "while False:",
        ("node.test_queues:test_who_does_not_read_large_answers_leaves_room_for_the_others",),
    ),
    Mutant(
        "nothing is read while too much waits to be carried out",
        "node.links",
        "            await self._ready()\n",
        "",
        ("node.test_links:test_nothing_is_read_while_too_much_waits_to_be_carried_out",),
    ),
    Mutant(
        "a proof is not kept with what a member signed",
        "node.witness",
        "self._seen[place] = without_proof(statement)",
        "self._seen[place] = statement",
        (
            "node.test_hostile_members:test_what_proves_a_lock_is_not_kept_with_what_a_member_signed",
        ),
    ),
)

FORGOTTEN = (
    Mutant(
        "nobody votes again where it may have forgotten its votes",
        "node.elections",
        "(place.decided is not None or place.forgotten)",
        "(place.decided is not None)",
        (
            "node.test_forgotten_promises:test_a_round_whose_promises_may_be_forgotten_is_not_promised_anything_again",
        ),
    ),
    Mutant(
        "nobody commits again where it may have forgotten its commitment",
        "node.rounds",
        "return me in self.view and not self.forgotten",
        "return me in self.view",
        (
            "node.test_forgotten_promises:test_a_round_whose_promises_may_be_forgotten_is_not_promised_anything_again",
        ),
    ),
    Mutant(
        "where the path parted is on disk",
        "node.storage_keys",
        '        return {"parted": pack(self.parted)}',
        "        return {}",
        (
            "node.test_forgotten_promises:test_a_round_whose_promises_may_be_forgotten_is_not_promised_anything_again",
        ),
    ),
    Mutant(
        "what is promised after a fork is known",
        "node.storage_keys",
        "return number <= self.expired and base <= self.parted",
        "return number <= self.expired",
        ("node.test_forgotten_promises:test_a_second_fork_closes_nothing_that_was_promised_since",),
    ),
)
