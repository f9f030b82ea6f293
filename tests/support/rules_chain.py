"""Rules of membership, of branches and of which chain is followed."""

from __future__ import annotations

from tests.support.mutants import Mutant

BEHIND = (
    Mutant(
        "who hears a quorum go on elsewhere is behind, not cut off",
        "node.branching",
        "if state.has_quorum_elsewhere(now):",
        "if False:",
        ("node.test_branching:test_who_hears_a_quorum_go_on_elsewhere_branches_only_much_later",),
    ),
    Mutant(
        "results that come in are no stall",
        "node.branching",
        "max(state.pulse.moved, state.pursuit.fed)",
        "state.pulse.moved",
        ("node.test_branching:test_results_that_come_in_are_no_stall",),
    ),
)

MEMBERSHIP = (
    Mutant(
        "newcomers vote after their first decided contribution",
        "node.chain",
        "return proven or base.view",
        "return base.view",
        ("node.test_chain:test_newcomers_have_no_vote_unless_nobody_else_is_left",),
    ),
    Mutant(
        "nobody is let in while another is on probation",
        "node.membership",
        "admitted = [] if unproven else candidates[:room]",
        "admitted = candidates[:room]",
        ("node.test_membership:test_nobody_is_admitted_while_another_is_on_probation",),
    ),
    Mutant(
        "at most a third is let in at once",
        "node.membership",
        "room = max(0, min(max(1, len(old) // 3), limit - len(kept)))",
        "room = max(0, limit - len(kept))",
        ("node.test_membership:test_at_most_a_third_is_admitted_at_once",),
    ),
    Mutant(
        "removed is whom most of the set do not hear",
        "node.membership",
        "if 2 * sum(peer in commitment.unheard for commitment in seen) > len(seen)",
        "if any(peer in commitment.unheard for commitment in seen)",
        ("node.test_membership:test_a_member_that_most_of_the_set_does_not_hear_is_removed",),
    ),
    Mutant(
        "removed is nobody who commits",
        "node.membership",
        "        for peer in old - present\n",
        "        for peer in old\n",
        ("node.test_membership:test_who_committed_is_heard_whatever_others_say",),
    ),
    Mutant(
        "whom most do not hear is removed",
        "node.membership",
        "    kept = old - gone - silent\n",
        "    kept = old - gone\n",
        ("node.test_membership:test_a_member_that_most_of_the_set_does_not_hear_is_removed",),
    ),
    Mutant(
        "absent is who is silent for rounds and for seconds",
        "node.membership",
        "absent = number - then > ABSENT_ROUNDS and now - at > absent_s",
        "absent = number - then > ABSENT_ROUNDS or now - at > absent_s",
        ("node.test_membership:test_who_was_never_heard_counts_from_our_start",),
    ),
    Mutant(
        "a newcomer that never contributes goes again",
        "node.membership",
        "if peer != self._me and (absent or idle):",
        "if peer != self._me and absent:",
        ("node.test_membership:test_a_newcomer_that_contributes_nothing_is_unheard_in_the_end",),
    ),
    Mutant(
        "a goodbye holds only while it is repeated",
        "node.membership",
        "said = {peer for peer, at in self._goodbyes.items() if now - at < WISH_S}",
        "said = set(self._goodbyes)",
        ("node.test_membership:test_wishes_and_goodbyes_expire_unless_repeated",),
    ),
    Mutant(
        "if no voter is left those who remain vote",
        "node.membership",
        "        return view, ()\n",
        "        return view, waiting\n",
        ("node.test_membership:test_if_no_voter_is_left_those_who_remain_vote",),
    ),
    Mutant(
        "who is far behind is not let in",
        "node.following",
        "if near and state.chain.follows(message.head, message.number):",
        "if True:",
        ("node.test_following:test_who_asks_to_join_needs_a_ticket_and_our_chain",),
    ),
)

BRANCHES = (
    Mutant(
        "stall time counts only while the peer runs",
        "node.protocol",
        "            pulse.moved = now  # asleep is not stalled: hear the others first",
        "            pass",
        ("node.test_protocol:test_a_laptop_that_wakes_up_hears_the_others_before_it_branches",),
    ),
    Mutant(
        "a branch carries the highest lock among its signers",
        "node.branching",
        "    carried = forming.highest_lock()\n",
        "    carried = None\n",
        (
            "node.test_branching:test_a_branch_stands_once_all_have_signed_and_carries_the_highest_lock",
        ),
    ),
    Mutant(
        "of several locks the highest is carried",
        "node.branches",
        "return max(locks, key=lambda pair: pair[0].attempt) if locks else None",
        "return min(locks, key=lambda pair: pair[0].attempt) if locks else None",
        (
            "node.test_branches:test_a_branch_is_complete_with_all_signatures_and_carries_the_highest_lock",
        ),
    ),
    Mutant(
        "a signature binds against higher callers for a while",
        "node.branches",
        "            and not bound\n",
        "",
        ("node.test_branches:test_a_lower_caller_overrides_a_higher_and_not_the_reverse",),
    ),
    Mutant(
        "a signature does not bind for ever",
        "node.branches",
        "            now - self._signed_at < PATIENCE_S and caller != self._me and caller >= self._signed_for",
        "            self._signed_at > 0 and caller != self._me and caller >= self._signed_for",
        ("node.test_branches:test_a_lower_caller_overrides_a_higher_and_not_the_reverse",),
    ),
    Mutant(
        "the lowest calls first",
        "node.branches",
        "patience_s = RANK_S * group.index(self._me)",
        "patience_s = 0.0",
        ("node.test_branches:test_the_lowest_calls_first_and_each_next_one_later",),
    ),
    Mutant(
        "who signed a branch calls again after a while",
        "node.branches",
        "            or now - self._signed_at < PATIENCE_S + patience_s\n",
        "            or self._signed_at > 0\n",
        ("node.test_branches:test_who_signed_calls_again_only_after_a_while",),
    ),
    Mutant(
        "nobody signs for a group it does not reach",
        "node.branches",
        "            and set(group) <= set(self.reach(head, now, orphaned=orphaned))\n",
        "",
        ("node.test_branches:test_a_member_signs_for_no_other_group",),
    ),
    Mutant(
        "a holder of the head goes on if all of the view are gone",
        "node.branches",
        "return head.number >= 0 and self._me not in head.view and now - since > wait_s and silent",
        "return False",
        ("node.test_branches:test_an_orphan_has_heard_nobody_of_the_view_for_three_stall_times",),
    ),
    Mutant(
        "a branch voids open commitments",
        "node.chain",
        "in (RecordKind.BRANCH, RecordKind.GENESIS)",
        "in (RecordKind.GENESIS,)",
        ("node.test_chain:test_rounds_after_a_branch_derive_from_it_until_it_is_k_old",),
    ),
    Mutant(
        "while a quorum is near, an exchange is no stall until it could be given up",
        "node.branching",
        "return max(since, (begun or now) + 4 * state.deadlines.abort_s)",
        "return since",
        ("node.test_slow_training:test_steps_may_take_as_long_as_they_like",),
    ),
    Mutant(
        "who signs a branch notes first that it votes no more",
        "node.branching",
        "    return [*stop, Send(answer, to=sender)]",
        "    return [Send(answer, to=sender), *stop]",
        ("node.test_branching:test_a_signer_writes_down_that_it_votes_no_more_before_it_signs",),
    ),
)

FOLLOWING = (
    Mutant(
        "a certified record beats a branch",
        "node.chain",
        "return (1, record.listed, inverted)",
        "return (3, record.listed, inverted)",
        ("node.test_chain:test_the_first_record_that_differs_decides_not_the_length",),
    ),
    Mutant(
        "a higher attempt beats a lower",
        "node.chain",
        "return (2, certificate.attempt if certificate else -1, inverted)",
        "return (2, 0, inverted)",
        ("node.test_chain:test_a_higher_attempt_beats_a_lower",),
    ),
    Mutant(
        "of two branches the one that lists more voters wins",
        "node.chain",
        "return (1, record.listed, inverted)",
        "return (1, 0, inverted)",
        ("node.test_chain:test_between_branches_more_listed_voters_win_then_the_smaller_hash",),
    ),
    Mutant(
        "of equal branches one wins",
        "node.chain",
        "return (1, record.listed, inverted)",
        'return (1, record.listed, b"")',
        ("node.test_chain:test_between_branches_more_listed_voters_win_then_the_smaller_hash",),
    ),
    Mutant(
        "the first record that differs decides, not the length",
        "node.chain",
        "return meet == len(other) or self._rank(path[meet]) > self._rank(other[meet])",
        "return len(path) > len(other)",
        ("node.test_chain:test_a_higher_attempt_beats_a_lower",),
    ),
    Mutant(
        "a record is followed only with its results held",
        "node.following",
        "    held = [state.holds_all(tuple(piece.root for piece in one.slices)) for one in records]\n",
        "    held = [True for one in records]\n",
        (
            "node.test_following:test_another_path_will_do_once_nobody_seems_to_have_the_better_ones_results",
            "node.test_following:test_results_of_a_few_bytes_are_followed_together_as_far_as_they_are_here",
        ),
    ),
    Mutant(
        "records are followed one by one where each result is large",
        "node.following",
        "        return fetches, state.target[: place + (count if carried else 1)]\n",
        "        return fetches, state.target[: place + count]\n",
        ("node.test_following:test_results_are_fetched_ahead_once_and_followed_in_order",),
    ),
    Mutant(
        "a branch of few takes no quorum along",
        "node.following",
        "    if state.has_quorum_near(now):\n        return True\n    idle_s",
        "    return False\n    idle_s",
        ("node.test_elections:test_a_branch_of_few_takes_no_quorum_along_that_stands_at_the_head",),
    ),
    Mutant(
        "a path whose results nobody has is not waited for for ever",
        "node.following",
        "        stuck = pursuit.waits_for(known[place], now) > state.settings.limits.stall_s\n",
        "        stuck = False\n",
        (
            "node.test_following:test_another_path_will_do_once_nobody_seems_to_have_the_better_ones_results",
        ),
    ),
    Mutant(
        "peers on a known path are asked again: their proofs may be better",
        "node.following",
        "    pause_s = ASK_KNOWN_S if known else ASK_S\n",
        "    if known:\n        return []\n    pause_s = ASK_S\n",
        ("node.test_following:test_a_known_path_that_we_do_not_prefer_is_asked_for_now_and_then",),
    ),
    Mutant(
        "a better proof of a known record is taken",
        "node.following",
        "        if better or not chain.knows(record):\n",
        "        if not chain.knows(record):\n",
        ("node.test_following_checks:test_a_better_certificate_of_a_known_record_is_taken",),
    ),
    Mutant(
        "records and head change in one write",
        "node.protocol",
        "            updates |= storage_keys.record_updates(record, chain.certificate(record.hash))\n",
        "            pass\n",
        ("1 shrink",),
    ),
    Mutant(
        "an old block goes to the disk with the step that archives it",
        "node.protocol",
        "        return [Adopt(fork, chain.path, updates, tuple(blocks))]\n",
        "        return [Adopt(fork, chain.path, updates)]\n",
        ("node.test_archive:test_a_path_that_parts_in_the_archive_is_found_again_after_a_restart",),
    ),
    Mutant(
        "blocks of a path that is given up are not taken for those of another",
        "node.protocol",
        "        updates |= storage_keys.reopened_updates(chain.archive.blocks, archived)\n",
        "",
        ("node.test_archive:test_a_path_that_parts_in_the_archive_is_found_again_after_a_restart",),
    ),
    Mutant(
        "records that come back from the archive have keys of their own again",
        "node.protocol",
        "        for record in (*back, *fork.adopted):\n",
        "        for record in fork.adopted:\n",
        ("node.test_archive:test_a_path_that_parts_in_the_archive_is_found_again_after_a_restart",),
    ),
    Mutant(
        "what is given up stays while the path that is wanted has it",
        "node.chain",
        "        dropped = tuple(name for name in old if name not in kept)\n",
        "        dropped = old\n",
        ("node.test_archive:test_what_was_given_up_long_ago_goes_and_what_is_wanted_stays",),
    ),
)
