"""Rules of the agreement and of what is put to the vote."""

from __future__ import annotations

from tests.support.mutants import Mutant

AGREEMENT = (
    Mutant(
        "a vote is on disk before it is sent",
        "verification.agreement",
        "actions.extend((StoreVote(vote, lock), vote))",
        "actions.extend((vote, StoreVote(vote, lock)))",
        (
            "verification.test_agreement_safety:test_a_vote_is_stored_before_it_is_sent",
            "2 quiet",
        ),
    ),
    Mutant(
        "a proposal is on disk before it is sent",
        "verification.agreement",
        "actions.extend((StoreProposal(proposal), proposal))",
        "actions.extend((proposal, StoreProposal(proposal)))",
        ("2 quiet",),
    ),
    Mutant(
        "a restart takes up its proposals",
        "verification.agreement",
        "            self._poll.put(proposal, self.attempt)\n        for vote",
        "        for vote",
        ("verification.test_agreement_safety:test_a_restart_proposes_again_what_it_proposed",),
    ),
    Mutant(
        "a lock binds",
        "verification.agreement",
        "        free = lock.attempt < 0 or lock.value == proposal.value\n",
        "        free = True\n",
        (
            "verification.test_agreement_safety:test_a_locked_member_refuses_another_value_without_a_proof",
        ),
    ),
    Mutant(
        "who is locked proposes what it is locked on",
        "verification.agreement",
        "        lock = self._lock\n        value = lock.value",
        "        lock = Lock(-1, NIL, ())\n        value = lock.value",
        (
            "verification.test_agreement_safety:test_a_locked_value_is_proposed_again_with_its_proof_after_a_restart",
        ),
    ),
    Mutant(
        "a newer lock frees only with a quorum of prevotes",
        "verification.agreement",
        "return proposal.lock_attempt < proposal.attempt and len(voters) >= self.electorate.quorum",
        "return True",
        ("verification.test_agreement_safety:test_a_proof_that_proves_nothing_frees_nobody",),
    ),
    Mutant(
        "a restart takes up its lock",
        "verification.agreement",
        "                self.attempt, self.step = vote.attempt, vote.step\n        self._lock = lock or self._lock",
        "                self.attempt, self.step = vote.attempt, vote.step",
        (
            "verification.test_agreement_safety:test_a_locked_value_is_proposed_again_with_its_proof_after_a_restart",
        ),
    ),
    Mutant(
        "a restart takes up its votes",
        "verification.agreement",
        "        for vote in votes:\n            self._poll.cast(vote, self.attempt)\n",
        "        for vote in ():\n            self._poll.cast(vote, self.attempt)\n",
        ("verification.test_agreement_safety:test_a_restart_resumes_without_equivocation",),
    ),
    Mutant(
        "nobody locks what it does not hold",
        "verification.agreement",
        "        if value and host.holds(self.instance, value):\n            proof",
        "        if value:\n            proof",
        (
            "verification.test_agreement:test_a_value_that_is_not_held_is_neither_locked_nor_decided",
        ),
    ),
    Mutant(
        "precommits decide, prevotes do not",
        "verification.agreement",
        "in self._poll.winners(Step.PRECOMMIT):",
        "in [*self._poll.winners(Step.PRECOMMIT), *self._poll.winners(Step.PREVOTE)]:",
        ("verification.test_agreement_safety:test_a_quorum_of_prevotes_locks_and_does_not_decide",),
    ),
    Mutant(
        "nobody waits for votes that cannot give a value a quorum any more",
        "verification.agreement",
        "return self._late(now) or ballots.most() + to_come < self.electorate.quorum",
        "return self._late(now)",
        ("verification.test_agreement:test_every_input_in_every_state",),
    ),
    Mutant(
        "votes to come are waited for while they can give a value a quorum",
        "verification.agreement",
        "return self._late(now) or ballots.most() + to_come < self.electorate.quorum",
        "return True",
        (
            "verification.test_agreement:test_precommits_wait_for_those_to_come_until_the_deadline_and_then_end_the_attempt",
        ),
    ),
    Mutant(
        "a quorum is more than half",
        "verification.votes",
        "return members // 2 + 1",
        "return max(1, members // 2)",
        ("verification.test_agreement:test_a_quorum_is_more_than_half",),
    ),
    Mutant(
        "proposers take turns",
        "verification.votes",
        "self.members[(self.offset + attempt) % len(self.members)]",
        "self.members[self.offset % len(self.members)]",
        ("verification.test_agreement:test_proposers_take_turns",),
    ),
    Mutant(
        "one goes at once where more members are than may lie",
        "verification.agreement",
        "self._skip_to(self._poll.reached_by(self.electorate.spare + 1), now)",
        "pass",
        ("verification.test_agreement:test_every_input_in_every_state",),
    ),
    Mutant(
        "one member's word takes nobody from an attempt that has a quorum",
        "verification.agreement",
        "self._skip_to(self._poll.reached_by(self.electorate.spare + 1), now)",
        "self._skip_to(self._poll.reached_by(1), now)",
        ("verification.test_poll:test_who_is_far_ahead_alone_takes_nobody_along",),
    ),
    Mutant(
        "whoever is left without a quorum goes after any member that is ahead",
        "verification.agreement",
        "            self._skip_to(self._poll.reached_by(1), now)",
        "            pass",
        (
            "verification.test_poll:test_whoever_is_left_alone_in_an_attempt_goes_after_the_only_one_that_is_ahead",
        ),
    ),
    Mutant(
        "nobody is taken far ahead at once",
        "verification.agreement",
        "self.attempt = min(attempt, self.attempt + MAX_HOP)",
        "self.attempt = attempt",
        (
            "verification.test_poll:test_where_more_are_than_may_lie_one_goes_at_once_and_not_further_than_a_hop",
        ),
    ),
    Mutant(
        "of each member so many votes are kept",
        "verification.poll",
        "        if len(places) > KEPT_VOTES:\n",
        "        if False:\n",
        (
            "verification.test_poll:test_older_votes_and_proposals_make_room_but_for_the_current_ones",
        ),
    ),
    Mutant(
        "votes of the current attempt are kept",
        "verification.poll",
        "min(known for known in places if known[0] != current)",
        "min(places)",
        (
            "verification.test_poll:test_older_votes_and_proposals_make_room_but_for_the_current_ones",
        ),
    ),
    Mutant(
        "of each member so many proposals are kept",
        "verification.poll",
        "        if len(turns) > KEPT_PROPOSALS:\n",
        "        if False:\n",
        (
            "verification.test_poll:test_older_votes_and_proposals_make_room_but_for_the_current_ones",
        ),
    ),
    Mutant(
        "who has voted in an attempt still says how it ended the one before",
        "verification.agreement",
        "        if self.attempt:  # who lacks it",
        "        if own[0] is None and self.attempt:  # who lacks it",
        ("verification.test_poll:test_repeats_hold_what_ends_the_attempt_before",),
    ),
    Mutant(
        "votes and proposals are sent again",
        "verification.agreement",
        "return again + [vote for vote in own if vote is not None]",
        "return []",
        ("verification.test_agreement_safety:test_a_restart_resumes_without_equivocation",),
    ),
    Mutant(
        "steps grow longer with the attempts",
        "verification.agreement",
        "patience = 1 + min(self.attempt, _MOST_PATIENT) / 2",
        "patience = 1",
        ("verification.test_agreement:test_steps_grow_longer_with_the_attempts_but_not_for_ever",),
    ),
    Mutant(
        "the clock of the first attempt waits while there is nothing to propose",
        "verification.agreement",
        "        if self.idle:\n            self._since = now",
        "        if self.idle:\n            pass",
        (
            "verification.test_agreement:test_the_clock_of_the_first_attempt_waits_while_there_is_nothing_to_propose",
        ),
    ),
    Mutant(
        "a certificate holds a quorum",
        "verification.votes",
        "    return len(good) >= electorate.quorum",
        "    return bool(good)",
        ("verification.test_agreement_safety:test_anything_less_is_no_certificate",),
    ),
    Mutant(
        "who signed a branch votes no more on what it interrupts",
        "node.elections",
        'return instance.kind == "outcome" and self._state.saved.has_stopped(*parent)',
        "return False",
        (
            "node.test_elections:test_who_signed_a_branch_votes_no_more_on_the_outcome_and_still_on_sets",
        ),
    ),
    Mutant(
        "where it signed a branch is forgotten by nobody without a number in its place",
        "node.storage_keys",
        "return parent in self.stops or number <= self.past.stopped",
        "return parent in self.stops",
        (
            "node.test_elections:test_who_has_forgotten_where_it_signed_branches_votes_on_no_outcome_of_that_time",
        ),
    ),
    Mutant(
        "a record is voted for only with its results held",
        "node.elections",
        "        if place.prepared.get(record.slices) != record.state_root or not place.could_be(record):\n            return False\n",
        "",
        ("1 quiet",),
    ),
    Mutant(
        "a record names the decided set",
        "node.rounds",
        "        if record.shares != self.shares:\n",
        "        if False:\n",
        ("node.test_rounds:test_a_record_of_another_set_says_nothing_about_this_round",),
    ),
    Mutant(
        "a round is given up only after its deadline",
        "node.elections",
        "return now > since and (attempt >= ABORT_ATTEMPTS or not held)",
        "return attempt >= ABORT_ATTEMPTS or not held",
        (
            "node.test_elections:test_a_round_is_given_up_after_its_deadline_and_not_before",
            "2 quiet",
        ),
    ),
    Mutant(
        "who holds results gives a round up only from the third attempt on",
        "node.elections",
        "return now > since and (attempt >= ABORT_ATTEMPTS or not held)",
        "return now > since",
        (
            "node.test_elections:test_who_holds_the_results_gives_a_round_up_only_in_a_later_attempt",
        ),
    ),
    Mutant(
        "in the end also who holds results gives a round up",
        "node.elections",
        "return now > since and (attempt >= ABORT_ATTEMPTS or not held)",
        "return now > since and not held",
        (
            "node.test_elections:test_who_holds_the_results_gives_a_round_up_only_in_a_later_attempt",
        ),
    ),
    Mutant(
        "a set waits for those who are expected",
        "node.elections",
        "self._expected(peer, now) and not self._is_left_behind(peer, place.key.number)",
        "False",
        (
            "node.test_elections:test_a_set_waits_for_whoever_was_just_heard_and_no_longer_than_its_deadline",
        ),
    ),
    Mutant(
        "a set does not wait for whom it is not open",
        "node.elections",
        "self._expected(peer, now) and not self._is_left_behind(peer, place.key.number)",
        "self._expected(peer, now)",
        ("node.test_elections:test_a_set_does_not_wait_for_a_member_that_is_rounds_behind",),
    ),
    Mutant(
        "now and then a set waits for members that are behind, too",
        "node.elections",
        "return not turn and self._state.lags(peer, number)",
        "return self._state.lags(peer, number)",
        ("node.test_slow_training:test_who_fell_behind_takes_part_again_however_short_the_rounds",),
    ),
    Mutant(
        "who has not said yet that it has the newest record is not behind",
        "node.protocol_state",
        "near = self.chain.open_rounds + 1 if",
        "near = self.chain.open_rounds if",
        ("node.test_elections:test_a_set_does_not_wait_for_a_member_that_is_rounds_behind",),
    ),
    Mutant(
        "a set waits for half of the voters",
        "node.elections",
        "if place.half_at is None or 2 * len(place.commits) < len(place.voters):",
        "if not place.commits:",
        ("node.test_elections:test_a_set_waits_for_half_of_the_voters_however_long",),
    ),
    Mutant(
        "a set waits no longer than the deadline",
        "node.elections",
        "        if now - place.half_at >= self._state.deadlines.commits.deadline_s():\n",
        "        if not missing:\n",
        (
            "node.test_elections:test_a_set_waits_for_whoever_was_just_heard_and_no_longer_than_its_deadline",
        ),
    ),
    Mutant(
        "nobody waits again for whoever let a deadline pass",
        "node.elections",
        "heard = members.heard_within(peer, silence_s, now) and not members.is_overdue(peer)",
        "heard = members.heard_within(peer, silence_s, now)",
        ("node.test_elections:test_nobody_waits_again_for_a_peer_that_let_a_deadline_pass",),
    ),
    Mutant(
        "a set that is voted for is on disk with the vote",
        "node.elections",
        "            return storage_keys.proposed_set_updates(place.key, value, proposed[value])\n",
        "            return {}\n",
        ("2 quiet",),
    ),
    Mutant(
        "a record that is voted for is on disk with the vote",
        "node.elections",
        "        return storage_keys.candidate_updates(candidates[value])\n",
        "        return {}\n",
        ("2 quiet",),
    ),
    Mutant(
        "who votes on a set that is decided is told so",
        "node.inbox",
        "        return [Send(SetDecided(place.decided, place.set_certificate), to=sender)]",
        "        return []",
        ("node.test_protocol:test_a_decided_set_is_told_to_who_still_votes_also_after_a_restart",),
    ),
    Mutant(
        "late commitments are timed too",
        "node.inbox",
        "                state.deadlines.too_late(key, peer, now)",
        "                pass",
        ("node.test_elections:test_a_commitment_that_comes_after_its_round_is_timed",),
    ),
)

EVIDENCE = (
    Mutant(
        "whoever says two things is found out",
        "node.witness",
        "return Evidence.of(known, statement) if excludes(known, statement) else None",
        "return None",
        ("node.test_evidence:test_two_votes_are_kept_told_of_and_held_against_their_voter",),
    ),
    Mutant(
        "the same statement again is no lie",
        "node.witness",
        "return Evidence.of(known, statement) if excludes(known, statement) else None",
        "return Evidence.of(known, statement)",
        ("node.test_evidence:test_what_proves_a_lock_is_no_part_of_what_is_said",),
    ),
    Mutant(
        "a peer may sign several branches",
        "node.witness",
        'if isinstance(statement, Vote) and statement.instance.kind == "branch":',
        "if False:",
        ("node.test_evidence:test_a_peer_may_sign_several_branches",),
    ),
    Mutant(
        "evidence against a peer is bounded",
        "node.witness",
        "return not known and against < MAX_PER_PEER and len(self._kept) < MAX_KEPT",
        "return not known",
        (
            "node.test_evidence:test_what_is_kept_against_a_peer_is_bounded_and_each_place_counts_once",
        ),
    ),
    Mutant(
        "who voted for another proposal is shown ours",
        "node.inbox",
        "        return [Send(known.message, to=vote.voter)]\n",
        "        return []\n",
        ("node.test_evidence:test_a_member_that_voted_for_another_proposal_is_shown_ours_once",),
    ),
)
