//! Cuts of jobs whose nodes end clocks as they like.

use proptest::prelude::*;

use super::*;

fn plan(every: Option<Every>) -> CutPlan {
    CutPlan { every, first: 1 }
}

fn named(actions: &[Action]) -> (u64, Clock) {
    let cut = actions.iter().find_map(|action| match action {
        Action::TellAll(ControlMessage::Cut { number, clock }) => Some((*number, *clock)),
        _ => None,
    });
    cut.unwrap_or_else(|| panic!("{actions:?}"))
}

fn file(name: &str) -> Vec<WrittenFile> {
    vec![WrittenFile { name: name.to_owned(), bytes: 1, digest: String::new() }]
}

/// Everybody does what is asked.
fn complete(cuts: &mut Cuts, number: u64) -> Vec<Action> {
    let mut last = Vec::new();
    for rank in 0..cuts.workers {
        cuts.answered(Node::Worker(rank), number, None);
        last = cuts.state(rank, number, vec![rank as u8]);
    }
    for rank in 0..cuts.servers {
        cuts.answered(Node::Server(rank), number, None);
        last = cuts.written(rank, number, file(&format!("f{rank}")));
    }
    last
}

#[test]
fn every_hundred_clocks() {
    let now = Instant::now();
    let mut cuts = Cuts::new(plan(Some(Every::Clocks(100))), 0);
    assert_eq!(named(&cuts.begin(2, 2, now)), (1, 100));
    let commit = complete(&mut cuts, 1);
    let [Action::Commit(commit)] = &commit[..] else { panic!("{commit:?}") };
    assert_eq!((commit.number, commit.clock, commit.files.len()), (1, 100, 2));
    assert_eq!(commit.states, [[0], [1]]);
    cuts.seen(250); // the disk was slow
    assert_eq!(named(&cuts.committed(1, Ok(()), now)), (2, 300));
}

#[test]
fn a_resumed_job_begins_behind_its_cut() {
    let mut cuts = Cuts::new(plan(Some(Every::Clocks(100))), 700);
    assert_eq!(named(&cuts.begin(1, 1, Instant::now())), (1, 800));
}

#[test]
fn every_so_often() {
    let now = Instant::now();
    let mut cuts = Cuts::new(plan(Some(Every::Time(Duration::from_secs(60)))), 0);
    assert_eq!(cuts.begin(1, 1, now), []);
    assert_eq!(cuts.tick(now + Duration::from_secs(59)), []);
    cuts.seen(7);
    assert_eq!(named(&cuts.tick(now + Duration::from_secs(60))), (1, 7));
    complete(&mut cuts, 1);
    assert_eq!(cuts.committed(1, Ok(()), now + Duration::from_secs(70)), []);
    assert_eq!(cuts.due(), Some(now + Duration::from_secs(130)));
    // Nobody has gone on since: the same clock is not cut again.
    assert_eq!(named(&cuts.tick(now + Duration::from_secs(130))), (2, 8));
}

#[test]
fn a_passed_clock_is_named_anew_once_all_have_answered() {
    let mut cuts = Cuts::new(plan(None), 0);
    cuts.begin(1, 2, Instant::now());
    assert_eq!(named(&cuts.end()), (1, 0));
    assert_eq!(cuts.answered(Node::Worker(1), 1, Some(5)), []);
    assert_eq!(cuts.answered(Node::Worker(0), 1, None), []);
    let again = cuts.answered(Node::Server(0), 1, None);
    assert_eq!(again[0], Action::TellAll(ControlMessage::CancelCut { number: 1 }));
    assert_eq!(named(&again), (2, 6));
    assert_eq!(cuts.answered(Node::Server(0), 1, Some(9)), [], "of a cut that was given up");
    complete(&mut cuts, 2);
    assert_eq!(cuts.ended(), None);
    cuts.committed(2, Ok(()), Instant::now());
    assert_eq!(cuts.ended(), Some(&Ended::Saved(2, 6)));
}

#[test]
fn a_wish_to_end_does_not_wait_for_a_clock_far_ahead() {
    let mut cuts = Cuts::new(plan(Some(Every::Clocks(1000))), 0);
    cuts.begin(1, 1, Instant::now());
    cuts.seen(41);
    assert_eq!(named(&cuts.end()), (2, 41));
    assert_eq!(cuts.end(), []);
    let failed = cuts.failed(2, "disk full".to_owned(), Instant::now());
    assert_eq!(failed, [Action::TellAll(ControlMessage::CancelCut { number: 2 })]);
    assert_eq!(cuts.ended(), Some(&Ended::Failed("disk full".to_owned())));
}

#[test]
fn a_failed_cut_is_made_when_it_is_due_again() {
    let now = Instant::now();
    let mut cuts = Cuts::new(plan(Some(Every::Clocks(10))), 0);
    cuts.begin(1, 1, now);
    assert_eq!(named(&cuts.failed(1, "disk full".to_owned(), now)), (2, 20));
    assert_eq!(cuts.failed(1, "late".to_owned(), now), []);
    complete(&mut cuts, 2);
    assert_eq!(named(&cuts.committed(2, Err("disk full".to_owned()), now)), (3, 30));
}

#[test]
fn workers_that_have_finished_are_stood_for_by_their_last_state() {
    let mut cuts = Cuts::new(plan(Some(Every::Clocks(10))), 0);
    cuts.begin(1, 3, Instant::now());
    cuts.state(1, 0, vec![7]);
    cuts.worker_finished(1);
    cuts.answered(Node::Worker(0), 1, None);
    cuts.state(0, 1, vec![8]);
    cuts.answered(Node::Server(0), 1, None);
    cuts.written(0, 1, file("f"));
    cuts.answered(Node::Worker(2), 1, None);
    let commit = cuts.worker_finished(2); // it never saved anything
    let [Action::Commit(commit)] = &commit[..] else { panic!("{commit:?}") };
    assert_eq!(commit.states, [vec![8], vec![7], vec![]]);
    // And from then on nobody asks them.
    assert_eq!(named(&cuts.committed(1, Ok(()), Instant::now())), (2, 20));
    cuts.answered(Node::Worker(0), 2, None);
    cuts.answered(Node::Server(0), 2, None);
    cuts.state(0, 2, vec![]);
    assert!(matches!(&cuts.written(0, 2, file("f"))[..], [Action::Commit(_)]));
}

proptest! {
    /// Workers end clocks between any two messages: the clock that is cut at last is one that nobody has passed, and it is found.
    #[test]
    fn a_clock_is_found_that_nobody_has_passed(speeds in proptest::collection::vec(0u64..40, 1..6)) {
        let mut clocks = vec![0u64; speeds.len()];
        let mut cuts = Cuts::new(plan(None), 0);
        cuts.begin(1, speeds.len() as u32, Instant::now());
        let mut actions = cuts.end();
        for _ in 0..20 {
            let (number, clock) = named(&actions);
            actions.clear();
            let mut passed = false;
            for (rank, speed) in speeds.iter().enumerate() {
                clocks[rank] += speed;
                let past = (clocks[rank] > clock).then_some(clocks[rank]);
                passed |= past.is_some();
                actions.extend(cuts.answered(Node::Worker(rank as u32), number, past));
            }
            actions.extend(cuts.answered(Node::Server(0), number, None));
            if !passed {
                prop_assert!(actions.is_empty());
                return Ok(());
            }
        }
        prop_assert!(false, "never found");
    }
}
