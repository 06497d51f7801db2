//! Who a process is, by its environment.

use std::env;

use crate::{Error, Result};

/// A process's place among others, as `torchrun`, Kubeflow's PyTorchJob and `cargo xtask launch` say it in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// RANK: 0 to world − 1.
    pub rank: usize,
    /// WORLD_SIZE: how many there are.
    pub world: usize,
    /// LOCAL_RANK: the place among those on the same machine, which is the number of its GPU. Default: 0.
    pub local_rank: usize,
    /// MASTER_ADDR: where rank 0 can be reached.
    pub address: String,
    /// MASTER_PORT.
    pub port: u16,
    /// `torchrun` has a store of its own at that address, and this is its number of restarts; else rank 0 has the store.
    pub agent: Option<u32>,
}

impl Ranks {
    /// A rank on this machine that nobody launched.
    pub(super) fn here(rank: usize, world: usize, port: u16) -> Self {
        Self {
            rank,
            world,
            local_rank: rank,
            address: "127.0.0.1".into(),
            port,
            agent: None,
        }
    }

    /// The environment's answer; `None` where neither RANK nor WORLD_SIZE is set.
    ///
    /// # Errors
    /// A variable that is missing or that is no number in its range.
    pub fn from_env() -> Result<Option<Self>> {
        Self::read(|name| env::var(name).ok().filter(|v| !v.is_empty()))
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if get("RANK").is_none() && get("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let wrong = |name: &str, expected: &str, found: Option<String>| {
            let found = found.map_or("nothing".into(), |f| format!("`{f}`"));
            Error::Mismatch(format!(
                "the environment's {name}: expected {expected}, found {found}"
            ))
        };
        let number = |name: &str, range: std::ops::Range<usize>| {
            let value = get(name);
            let found = value.as_ref().and_then(|v| v.parse().ok());
            found.filter(|n| range.contains(n)).ok_or_else(|| {
                let expected = format!("a number from {} to {}", range.start, range.end - 1);
                wrong(name, &expected, value)
            })
        };
        let world = number("WORLD_SIZE", 1..1 << 20)?;
        let rank = number("RANK", 0..world)?;
        let local_rank = match get("LOCAL_RANK") {
            Some(_) => number("LOCAL_RANK", 0..world)?,
            None => 0,
        };
        let (address, port) = match world {
            1 => (String::new(), 0),
            _ => (
                get("MASTER_ADDR")
                    .ok_or_else(|| wrong("MASTER_ADDR", "the address of rank 0", None))?,
                number("MASTER_PORT", 1..1 << 16)? as u16,
            ),
        };
        let agent = match get("TORCHELASTIC_USE_AGENT_STORE").as_deref() {
            Some("True") => Some(
                get("TORCHELASTIC_RESTART_COUNT")
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0),
            ),
            _ => None,
        };
        Ok(Some(Self {
            rank,
            world,
            local_rank,
            address,
            port,
            agent,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Ranks>> {
        Ranks::read(|name| {
            let found = pairs.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn a_process_that_nobody_launched_is_no_rank() {
        assert_eq!(read(&[("MASTER_ADDR", "a")]).unwrap(), None);
    }

    #[test]
    fn what_torchrun_sets_is_read() {
        let all = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "29400"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let ranks = read(&all).unwrap().unwrap();
        assert_eq!((ranks.rank, ranks.world, ranks.local_rank), (3, 4, 1));
        assert_eq!(
            (ranks.address.as_str(), ranks.port, ranks.agent),
            ("node7", 29400, Some(2))
        );
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let message = |pairs: &[(&str, &str)]| read(pairs).unwrap_err().to_string();
        assert_eq!(
            message(&[("RANK", "2"), ("WORLD_SIZE", "2")]),
            "the environment's RANK: expected a number from 0 to 1, found `2`"
        );
        assert_eq!(
            message(&[("RANK", "0")]),
            "the environment's WORLD_SIZE: expected a number from 1 to 1048575, found nothing"
        );
        assert_eq!(
            message(&[("RANK", "0"), ("WORLD_SIZE", "2")]),
            "the environment's MASTER_ADDR: expected the address of rank 0, found nothing"
        );
    }
}
