//! The policy under virtual time.

use super::*;

const SETTLE: Duration = Duration::from_millis(300);
const REPORT: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(5);
/// The exit code of a child that lost a peer.
const LOST: i32 = 4;
const KILL: Exit = Exit::Signal(9);

/// A server (child 0) and two workers (1 and 2), with pids 100 to 102.
fn tree() -> (Policy, Instant) {
    let mut policy = Policy::new("run", Times { grace: GRACE, settle: SETTLE, report: REPORT }, &[LOST]);
    policy.started("server 0 (pid 100)".into(), ChildRole::Server);
    policy.started("worker 0 (pid 101)".into(), ChildRole::Worker);
    policy.started("worker 1 (pid 102)".into(), ChildRole::Worker);
    (policy, Instant::now())
}

fn said(policy: &mut Policy) -> Vec<Action> {
    policy.take_actions()
}

fn say(text: &str) -> Action {
    Action::Say(format!("run: {text}\n"))
}

#[test]
fn a_good_run_says_nothing() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(0), t);
    assert_eq!(policy.deadline(), None);
    policy.exited(2, Exit::Code(0), t);
    assert_eq!(policy.deadline(), Some(t + GRACE));
    policy.exited(0, Exit::Code(0), t);
    assert!(policy.done());
    assert_eq!(said(&mut policy), []);
    assert_eq!(policy.outcome(), Outcome { code: 0, cause: None });
}

#[test]
fn a_failure_is_named_then_the_others_are_stopped_step_by_step() {
    let (mut policy, t) = tree();
    policy.exited(2, Exit::Code(7), t);
    assert_eq!(said(&mut policy), []);
    policy.tick(t + SETTLE);
    assert_eq!(said(&mut policy), [say("worker 1 (pid 102) failed with exit code 7; stopping the others")]);
    policy.tick(t + REPORT);
    assert_eq!(said(&mut policy), [Action::Signal(SIGTERM)]);
    policy.exited(1, Exit::Signal(SIGTERM), t + REPORT);
    policy.tick(t + REPORT + GRACE);
    assert_eq!(said(&mut policy), [Action::Kill]);
    assert!(!policy.done());
    policy.exited(0, KILL, t + REPORT + GRACE);
    assert!(policy.done());
    assert_eq!(policy.outcome().code, 7);
}

#[test]
fn a_kill_seen_while_settling_is_the_cause_of_the_failure_seen_before() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(1), t);
    policy.exited(0, KILL, t + SETTLE / 2);
    policy.exited(2, Exit::Signal(SIGPIPE), t + SETTLE / 2);
    assert_eq!(said(&mut policy), [say("server 0 (pid 100) was killed by signal 9 (SIGKILL)")]);
    assert_eq!(policy.outcome().code, 137);
}

#[test]
fn who_failed_because_of_another_is_the_cause_only_if_nobody_else_failed() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(LOST), t);
    assert_eq!(policy.outcome().code, LOST);
    policy.exited(0, Exit::Code(101), t);
    assert_eq!(policy.outcome().code, 101);
}

#[test]
fn what_the_coordinator_says_of_another_weighs_more_than_a_consequence_and_less_than_a_report() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(LOST), t);
    policy.stop("lost worker 1".into(), LOST, t);
    assert_eq!(policy.outcome().cause, Some("lost worker 1".into()));
    policy.tick(t + SETTLE);
    assert_eq!(said(&mut policy), []);
    policy.exited(2, Exit::Code(20), t + SETTLE);
    policy.tick(t + SETTLE);
    assert_eq!(said(&mut policy), [say("worker 1 (pid 102) failed with exit code 20; stopping the others")]);
    assert_eq!(policy.outcome().code, 20);
}

#[test]
fn a_consequence_is_the_cause_when_no_report_comes() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(LOST), t);
    policy.tick(t + REPORT);
    let cause = say("worker 0 (pid 101) failed with exit code 4; stopping the others");
    assert_eq!(said(&mut policy), [cause, Action::Signal(SIGTERM)]);
    assert_eq!(policy.outcome().code, LOST);
}

#[test]
fn after_settling_the_cause_stays() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(3), t);
    policy.tick(t + SETTLE);
    policy.exited(0, KILL, t + SETTLE);
    policy.stop("lost worker 0".into(), 9, t + SETTLE);
    assert_eq!(policy.outcome().code, 3);
}

#[test]
fn a_death_by_sigpipe_weighs_no_more_than_an_exit_code() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(7), t);
    policy.exited(2, Exit::Signal(SIGPIPE), t);
    assert_eq!(policy.outcome().code, 7);
}

#[test]
fn a_server_may_not_end_before_the_workers() {
    let (mut policy, t) = tree();
    policy.exited(0, Exit::Code(0), t);
    policy.tick(t + SETTLE);
    assert_eq!(
        said(&mut policy),
        [say("server 0 (pid 100) ended before the workers did; stopping the others")]
    );
    assert_eq!(policy.outcome().code, 1);
}

#[test]
fn a_server_that_is_a_moment_ahead_of_the_workers_is_no_failure() {
    let (mut policy, t) = tree();
    policy.exited(0, Exit::Code(0), t);
    policy.exited(1, Exit::Code(0), t);
    policy.exited(2, Exit::Code(0), t + SETTLE / 2);
    assert!(policy.done());
    assert_eq!(said(&mut policy), []);
    assert_eq!(policy.outcome(), Outcome { code: 0, cause: None });
}

#[test]
fn once_the_job_is_finished_servers_may_end_first() {
    for finished_first in [true, false] {
        let (mut policy, t) = tree();
        if finished_first {
            policy.job_finished();
        }
        policy.exited(0, Exit::Code(0), t);
        policy.job_finished();
        policy.tick(t + SETTLE);
        assert_eq!(policy.outcome(), Outcome { code: 0, cause: None });
        policy.exited(1, Exit::Code(5), t + GRACE);
        assert_eq!(policy.outcome().code, 5);
    }
}

#[test]
fn a_server_that_stays_is_stopped_and_that_is_no_failure() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(0), t);
    policy.exited(2, Exit::Code(0), t);
    policy.tick(t + GRACE);
    let late = say(
        "server 0 (pid 100) did not end within 5s after the workers (did the workers ever join the job?); stopping",
    );
    assert_eq!(said(&mut policy), [late, Action::Signal(SIGTERM)]);
    policy.exited(0, Exit::Signal(SIGTERM), t + GRACE);
    assert_eq!(policy.outcome(), Outcome { code: 0, cause: None });
}

#[test]
fn a_server_that_fails_after_the_workers_fails_the_run() {
    let (mut policy, t) = tree();
    policy.exited(1, Exit::Code(0), t);
    policy.exited(2, Exit::Code(0), t);
    policy.exited(0, Exit::Code(101), t);
    assert!(policy.done());
    assert_eq!(said(&mut policy), [say("server 0 (pid 100) failed with exit code 101")]);
    assert_eq!(policy.outcome().code, 101);
}

#[test]
fn a_signal_is_forwarded_and_a_second_one_kills() {
    let (mut policy, t) = tree();
    policy.signalled(2, t);
    assert_eq!(said(&mut policy), [say("received SIGINT; stopping"), Action::Signal(2)]);
    policy.signalled(2, t);
    assert_eq!(said(&mut policy), [Action::Kill]);
    assert_eq!(policy.outcome().code, 130);
}

#[test]
fn a_stop_request_gives_its_reason_and_code_unless_a_kill_explains_it() {
    let (mut policy, t) = tree();
    policy.stop("lost worker 1".into(), 9, t);
    assert_eq!(policy.outcome(), Outcome { code: 9, cause: Some("lost worker 1".into()) });
    policy.exited(2, KILL, t);
    assert_eq!(policy.outcome().code, 137);
}

#[test]
fn what_can_not_be_killed_is_named_and_given_up() {
    let (mut policy, t) = tree();
    policy.signalled(SIGTERM, t);
    policy.exited(1, KILL, t);
    policy.exited(2, KILL, t);
    policy.tick(t + GRACE);
    policy.tick(t + GRACE + DYING);
    assert!(policy.done());
    assert_eq!(said(&mut policy).last(), Some(&say("server 0 (pid 100) could not be killed")));
}

#[test]
fn closed_output_stops_the_tree_at_once() {
    let (mut policy, t) = tree();
    policy.output_closed("standard output", t);
    assert_eq!(said(&mut policy).last(), Some(&Action::Signal(SIGTERM)));
    policy.output_closed("standard error", t);
    assert_eq!(said(&mut policy), []);
    assert_eq!(policy.outcome().code, 141);
}

const SAVE: Duration = Duration::from_secs(30);

#[test]
fn a_job_that_can_save_itself_is_asked_to_and_then_stopped() {
    let (mut policy, t) = tree();
    policy.can_save(SAVE);
    policy.signalled(SIGUSR1, t);
    assert_eq!(said(&mut policy), [say("received SIGUSR1; a last checkpoint within 30s"), Action::Save]);
    assert_eq!(policy.deadline(), Some(t + SAVE));
    policy.stop("saved".into(), 75, t);
    policy.exited(1, Exit::Code(1), t);
    policy.exited(2, KILL, t);
    policy.exited(0, Exit::Code(LOST), t);
    assert!(policy.done());
    assert_eq!(policy.outcome(), Outcome { code: 75, cause: Some("saved".into()) });
}

#[test]
fn a_job_that_does_not_save_itself_in_time_is_ended() {
    let (mut policy, t) = tree();
    policy.can_save(SAVE);
    policy.signalled(SIGTERM, t);
    policy.tick(t + SAVE);
    let line = say("received SIGTERM, and there was no checkpoint in time; stopping");
    assert_eq!(said(&mut policy)[2..], [line, Action::Signal(SIGTERM)]);
    assert_eq!(policy.outcome().code, 143);
}

#[test]
fn a_second_signal_does_not_wait_for_the_checkpoint() {
    let (mut policy, t) = tree();
    policy.can_save(SAVE);
    policy.signalled(SIGUSR1, t);
    // The batch system's own, and the same again from the launcher that got it, too.
    policy.signalled(SIGTERM, t + AGAIN / 2);
    assert_eq!(said(&mut policy).last(), Some(&Action::Save));
    policy.signalled(SIGUSR1, t + AGAIN);
    assert_eq!(
        said(&mut policy).last(),
        Some(&Action::Signal(SIGTERM)),
        "and SIGKILL when the grace is over"
    );
    assert_eq!(policy.outcome().code, 138);
}

#[test]
fn a_job_may_be_done_before_it_is_saved() {
    let (mut policy, t) = tree();
    policy.can_save(SAVE);
    policy.signalled(SIGTERM, t);
    policy.exited(1, Exit::Code(0), t);
    policy.exited(2, Exit::Code(0), t);
    policy.exited(0, Exit::Code(0), t);
    assert_eq!(policy.outcome(), Outcome { code: 0, cause: None });
    // And a failure meanwhile is one.
    let (mut policy, t) = tree();
    policy.can_save(SAVE);
    policy.signalled(SIGTERM, t);
    policy.exited(1, Exit::Code(7), t);
    policy.tick(t + SETTLE);
    assert_eq!(policy.outcome().code, 7);
}
