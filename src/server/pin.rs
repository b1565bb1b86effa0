//! On which CPU each thread of a server runs.

use crate::config::Pin;
use crate::error::{Error, Result};

/// What the launcher says of a host: who this process is there, and how many wait for the network beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// This server's number among the job's processes on its host, which counts servers before workers. All of them have
    /// the same number of threads.
    pub local_index: Option<u32>,
    /// Threads of the job that wait for the network on this host; this server's own when it is not known.
    pub pollers: Option<usize>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The CPU of each thread.
    Pinned(Vec<usize>),
    /// The threads run wherever the process may, and why.
    Free(String),
}

/// The plan for a server of so many threads in a process that may use `allowed`; `None` when that can't be known.
pub fn plan(pin: &Pin, threads: u32, place: Place, allowed: Option<&[usize]>) -> Result<Plan> {
    let threads = threads as usize;
    let first = place.local_index.unwrap_or(0) as usize * threads;
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
        Pin::Auto => Ok(automatic(threads, first, place, allowed)),
    }
}

fn automatic(threads: usize, first: usize, place: Place, allowed: Option<&[usize]>) -> Plan {
    let Some(allowed) = allowed else {
        return Plan::Free("the affinity mask of this host can't be read".to_owned());
    };
    if place.local_index.is_none() {
        return Plan::Free("no launcher says which of the servers on this host this is".to_owned());
    }
    let pollers = place.pollers.unwrap_or(threads).max(first + threads);
    match allowed.get(first..first + threads) {
        Some(ours) if pollers <= allowed.len() => Plan::Pinned(ours.to_vec()),
        _ => Plan::Free(format!(
            "{pollers} threads wait for the network on this host, and this process may use {} CPUs",
            allowed.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[usize] = &[1, 4, 5, 9];

    fn place(local_index: u32, pollers: usize) -> Place {
        Place { local_index: Some(local_index), pollers: Some(pollers) }
    }

    fn cpus(pin: &Pin, threads: u32, place: Place) -> Result<Option<Vec<usize>>> {
        Ok(match plan(pin, threads, place, Some(ALLOWED))? {
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
        let why = |threads, place, allowed| match plan(&Pin::Auto, threads, place, allowed).unwrap() {
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
}
