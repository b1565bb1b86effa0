//! On which CPU each thread of a server runs: near its rail's NIC, where that is known.

use crate::config::Pin;
use crate::error::{Error, Result};
use crate::transport::choice;
use crate::transport::topology::show;

/// What the launcher says of a host: who this process is there, and how many wait for the network beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// This server's number among the job's processes on its host, which counts servers before workers. All of them have
    /// the same number of threads.
    pub local_index: Option<u32>,
    /// Threads of the job that wait for the network on this host; this server's own when it is not known.
    pub pollers: Option<usize>,
}

impl Place {
    /// The number of this server's first thread among the server threads of its host.
    pub fn first(&self, threads: u32) -> u32 {
        self.local_index.unwrap_or(0).saturating_mul(threads)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The CPU of each thread.
    Pinned(Vec<usize>),
    /// The threads run wherever the process may, and why.
    Free(String),
}

/// The plan for a server of so many threads in a process that may use `allowed`; `None` when that can't be known. `near` has the CPUs
/// next to each rail, none where they are not known; it is empty where there are no rails.
pub fn plan(
    pin: &Pin,
    threads: u32,
    place: Place,
    allowed: Option<&[usize]>,
    near: &[&[usize]],
) -> Result<Plan> {
    let first = place.first(threads) as usize;
    let threads = threads as usize;
    match pin {
        Pin::None => Ok(Plan::Free("`none` was asked for".to_owned())),
        Pin::List(list) => {
            let allowed = allowed.ok_or_else(|| Error::config("pin", "auto or none on this host", pin))?;
            if let Some(stranger) = list.iter().find(|cpu| !allowed.contains(cpu)) {
                let mask = Pin::List(allowed.to_vec());
                return Err(Error::config("pin", format!("CPUs of the affinity mask {mask}"), stranger));
            }
            let expected = || format!("a CPU for each of the first {} server threads", first + threads);
            let ours = list.get(first..first + threads);
            let ours = ours.ok_or_else(|| Error::config("pin", expected(), pin))?;
            Ok(Plan::Pinned(ours.to_vec()))
        }
        Pin::Auto => Ok(automatic(threads, first, place, allowed, near)),
    }
}

fn automatic(
    threads: usize,
    first: usize,
    place: Place,
    allowed: Option<&[usize]>,
    near: &[&[usize]],
) -> Plan {
    let Some(allowed) = allowed else {
        return Plan::Free("the affinity mask of this host can't be read".to_owned());
    };
    if place.local_index.is_none() {
        return Plan::Free("no launcher says which of the servers on this host this is".to_owned());
    }
    let pollers = place.pollers.unwrap_or(threads).max(first + threads);
    if pollers > allowed.len() {
        return Plan::Free(format!(
            "{pollers} threads wait for the network on this host, and this process may use {} CPUs",
            allowed.len()
        ));
    }
    Plan::Pinned(nearest(first + threads, allowed, near).split_off(first))
}

/// A CPU for each of the first server threads of a host, of which there are enough. What a thread gets depends on those before it
/// alone, so that all servers of the host, which know no more than their own place, find the same.
fn nearest(threads: usize, allowed: &[usize], near: &[&[usize]]) -> Vec<usize> {
    let mut free = allowed.to_vec();
    let to_any = |cpu: &usize| near.iter().any(|near| near.contains(cpu));
    let choose = |thread: usize| {
        let (rail, _) = choice::place(thread as u32, near.len());
        let ours = near.get(rail).copied().unwrap_or_default();
        let at = free.iter().position(|cpu| ours.contains(cpu));
        // Else one that is nobody's; else the last, which others come to last.
        let at = at.or_else(|| free.iter().position(|cpu| !to_any(cpu)));
        free.remove(at.unwrap_or(free.len() - 1))
    };
    (0..threads).map(choose).collect()
}

/// The CPUs of a thread that works beside a pinned server thread and makes memory for it: those that the process may use of that one's NUMA
/// `node`, whose CPUs these are; all where it is not known.
pub fn beside(allowed: &[usize], node: Option<&[usize]>) -> Vec<usize> {
    allowed.iter().copied().filter(|other| node.is_none_or(|node| node.contains(other))).collect()
}

/// Which of a server's threads, the first of which has the number `first`, run on a CPU that is not next to its rail, and why.
pub fn far(cpus: &[usize], first: u32, allowed: &[usize], near: &[&[usize]]) -> Option<String> {
    let far = |(thread, cpu): (u32, &usize)| {
        let (rail, _) = choice::place(first.saturating_add(thread), near.len());
        let ours = near.get(rail).filter(|near| !near.is_empty() && !near.contains(cpu))?;
        let usable = ours.iter().any(|cpu| allowed.contains(cpu));
        let why = if usable { "are not enough" } else { "are outside the affinity mask" };
        Some(format!("thread {thread} on CPU {cpu} (those next to rail {rail}, {}, {why})", show(ours)))
    };
    let all: Vec<String> = (0..).zip(cpus).filter_map(far).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[usize] = &[1, 4, 5, 9];

    fn place(local_index: u32, pollers: usize) -> Place {
        Place { local_index: Some(local_index), pollers: Some(pollers) }
    }

    fn cpus(pin: &Pin, threads: u32, place: Place) -> Result<Option<Vec<usize>>> {
        Ok(match plan(pin, threads, place, Some(ALLOWED), &[])? {
            Plan::Pinned(cpus) => Some(cpus),
            Plan::Free(_) => None,
        })
    }

    #[test]
    fn servers_of_one_host_get_cpus_of_their_own() {
        assert_eq!(cpus(&Pin::Auto, 1, place(0, 4)).unwrap(), Some(vec![1]));
        assert_eq!(cpus(&Pin::Auto, 1, place(1, 4)).unwrap(), Some(vec![4]));
        assert_eq!(cpus(&Pin::Auto, 2, place(0, 4)).unwrap(), Some(vec![1, 4]));
        assert_eq!(cpus(&Pin::Auto, 2, place(1, 4)).unwrap(), Some(vec![5, 9]));
    }

    #[test]
    fn auto_pins_nothing_where_it_would_do_harm_and_says_why() {
        let why = |threads, place, allowed| match plan(&Pin::Auto, threads, place, allowed, &[]).unwrap() {
            Plan::Free(why) => why,
            Plan::Pinned(cpus) => panic!("{cpus:?}"),
        };
        let crowded = "5 threads wait for the network on this host, and this process may use 4 CPUs";
        assert_eq!(why(1, place(0, 5), Some(ALLOWED)), crowded);
        // The launcher's number of pollers can't be less than the threads up to our own.
        assert!(why(2, place(2, 1), Some(ALLOWED)).starts_with("6 threads"));
        assert!(why(1, Place::default(), Some(ALLOWED)).contains("no launcher"));
        assert!(why(1, place(0, 1), None).contains("can't be read"));
    }

    #[test]
    fn a_list_is_shared_out_in_its_order_and_stays_inside_the_mask() {
        let list: Pin = "9,1,4".parse().unwrap();
        assert_eq!(cpus(&list, 1, Place::default()).unwrap(), Some(vec![9]));
        assert_eq!(cpus(&list, 1, place(2, 99)).unwrap(), Some(vec![4]));
        let refused =
            |pin: &str, threads, place| cpus(&pin.parse().unwrap(), threads, place).unwrap_err().to_string();
        assert_eq!(
            refused("1,2", 1, place(0, 1)),
            "pin: expected CPUs of the affinity mask 1,4,5,9, found 2"
        );
        assert_eq!(
            refused("1,4", 2, place(1, 1)),
            "pin: expected a CPU for each of the first 4 server threads, found 1,4"
        );
        assert_eq!(cpus(&Pin::None, 1, place(0, 1)).unwrap(), None);
    }

    /// The CPUs of two sockets.
    const SOCKETS: [&[usize]; 2] = [&[0, 1, 2, 3], &[4, 5, 6, 7]];
    const UNKNOWN: &[usize] = &[];

    /// What server threads get on a host whose every CPU may be used.
    fn whole(threads: usize, near: &[&[usize]]) -> Vec<usize> {
        nearest(threads, &[0, 1, 2, 3, 4, 5, 6, 7], near)
    }

    #[test]
    fn threads_run_next_to_their_rails() {
        let [first, second] = SOCKETS;
        for (near, expected) in [
            // No rails, or nothing is known of them: in order.
            (&[][..], [0, 1, 2, 3]),
            (&[UNKNOWN], [0, 1, 2, 3]),
            // One socket has all the NICs.
            (&[first], [0, 1, 2, 3]),
            (&[second], [4, 5, 6, 7]),
            (&[second, second], [4, 5, 6, 7]),
            // A rail on each: whole buckets, which belong to threads, go round.
            (&[first, second], [0, 4, 1, 5]),
            (&[second, first], [4, 0, 5, 1]),
            (&[first, first, second, second], [0, 1, 4, 5]),
            (&[first, second, first], [0, 4, 1, 2]),
            // Of one rail nothing is known: its threads take what is nobody's, else the last.
            (&[first, UNKNOWN], [0, 4, 1, 5]),
            (&[first, second, UNKNOWN], [0, 4, 7, 1]),
        ] {
            assert_eq!(whole(4, near), expected, "{near:?}");
        }
        // More threads than a socket has CPUs.
        assert_eq!(whole(6, &[second]), [4, 5, 6, 7, 0, 1]);
        assert_eq!(whole(8, &[first]), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn the_mask_wins_over_the_nic_and_a_far_thread_is_named_once() {
        let near = [SOCKETS[1]];
        let pinned = |allowed: &[usize]| match plan(&Pin::Auto, 2, place(0, 2), Some(allowed), &near).unwrap()
        {
            Plan::Pinned(cpus) => (cpus.clone(), far(&cpus, 0, allowed, &near)),
            Plan::Free(why) => panic!("{why}"),
        };
        assert_eq!(pinned(&[2, 3, 6, 7]), (vec![6, 7], None));
        let outside = "thread 0 on CPU 2 (those next to rail 0, 4-7, are outside the affinity mask); \
                       thread 1 on CPU 3 (those next to rail 0, 4-7, are outside the affinity mask)";
        assert_eq!(pinned(&[2, 3]), (vec![2, 3], Some(outside.to_owned())));
        let scarce = "thread 1 on CPU 2 (those next to rail 0, 4-7, are not enough)";
        assert_eq!(pinned(&[2, 5]), (vec![5, 2], Some(scarce.to_owned())));
        // Of what is not known nothing is said, and a list of the user's is judged, too.
        assert_eq!(far(&[0, 1], 0, &[0, 1], &[UNKNOWN]), None);
        assert_eq!(far(&[0, 1], 0, &[0, 1], &[]), None);
        assert!(
            far(&[0, 5], 1, ALL, &SOCKETS)
                .unwrap()
                .starts_with("thread 0 on CPU 0 (those next to rail 1, 4-7")
        );
    }

    const ALL: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7];

    #[test]
    fn who_works_beside_a_server_thread_stays_on_its_node_and_in_the_mask() {
        assert_eq!(beside(ALLOWED, Some(SOCKETS[1])), [4, 5]);
        assert_eq!(beside(ALLOWED, Some(SOCKETS[0])), [1]);
        assert_eq!(beside(ALLOWED, None), ALLOWED);
    }

    proptest::proptest! {
        /// Every thread of a host gets one CPU of the mask that no other has, whichever server finds it out, and a CPU next to its rail
        /// while there is one.
        #[test]
        fn servers_of_one_host_agree(
            allowed in proptest::collection::btree_set(0usize..16, 1..17),
            rails in proptest::collection::vec(proptest::collection::btree_set(0usize..16, 0..8), 0..5),
            threads in 1u32..4,
        ) {
            let allowed: Vec<usize> = allowed.into_iter().collect();
            let rails: Vec<Vec<usize>> = rails.into_iter().map(|cpus| cpus.into_iter().collect()).collect();
            let near: Vec<&[usize]> = rails.iter().map(Vec::as_slice).collect();
            let servers = allowed.len() / threads as usize;
            let mut all = Vec::new();
            for index in 0..servers {
                let place = place(index as u32, servers * threads as usize);
                match plan(&Pin::Auto, threads, place, Some(&allowed), &near).unwrap() {
                    Plan::Pinned(cpus) => {
                        proptest::prop_assert_eq!(cpus.len(), threads as usize);
                        all.extend(cpus);
                    }
                    Plan::Free(why) => panic!("{why}"),
                }
            }
            for (thread, cpu) in all.iter().enumerate() {
                proptest::prop_assert!(allowed.contains(cpu) && !all[..thread].contains(cpu));
                let Some(ours) = near.get(thread % near.len().max(1)) else { continue };
                let left = |cpu: &&usize| allowed.contains(cpu) && !all[..thread].contains(cpu);
                proptest::prop_assert!(ours.contains(cpu) || ours.iter().find(left).is_none());
            }
        }
    }
}
