//! What the ranks say to each other.
use std::ops::AddAssign;

use mpi::Count;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence};

/// The processes of the run, of which this is one.
pub struct Ranks<C> {
    world: C,
    pub rank: usize,
    pub size: usize,
}

/// A number that ranks can send and add.
pub trait Number: Equivalence + AddAssign + Copy + Default {}
impl<T: Equivalence + AddAssign + Copy + Default> Number for T {}

impl<C: Communicator> Ranks<C> {
    pub fn new(world: C) -> Self {
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ranks { world, rank, size }
    }

    /// The rank's number among those of its machine.
    pub fn local(&self) -> usize {
        self.world.split_shared(self.world.rank()).rank() as usize
    }

    /// The all-reduce: element by element the sum over all ranks, the same bits on each rank and in each run.
    ///
    /// MPI's own all-reduce may add in another order in another run. So nothing is added on the way here: rank r gets
    /// the r-th part of everybody's numbers, adds them up by [`tree`], and everybody gets all parts. A rank sends
    /// 2·(P - 1)/P times its numbers, as in a ring.
    pub fn sum<T: Number>(&self, numbers: &[T]) -> Result<Vec<T>, String> {
        if self.size == 1 {
            return Ok(numbers.to_vec());
        }
        let part = numbers.len().div_ceil(self.size);
        let mut sent = numbers.to_vec();
        sent.resize(part * self.size, T::default());
        Count::try_from(sent.len()).map_err(|_| format!("{} numbers are more than MPI counts", sent.len()))?;
        let mut received = vec![T::default(); sent.len()];
        self.world.all_to_all_into(&sent[..], &mut received[..]);
        let sums = tree(received.chunks(part.max(1)).map(<[T]>::to_vec).collect());
        let mut all = self.gather(&sums);
        all.truncate(numbers.len());
        Ok(all)
    }

    /// Everybody's numbers, in the order of ranks: of each rank as many.
    pub fn gather<T: Number>(&self, numbers: &[T]) -> Vec<T> {
        let mut all = vec![T::default(); numbers.len() * self.size];
        self.world.all_gather_into(numbers, &mut all[..]);
        all
    }

    /// That all ranks have the same, by a digest of it.
    pub fn agree(&self, what: &str, digest: u64) -> Result<(), String> {
        let digests = self.gather(&[digest]);
        match digests.iter().position(|&other| other != digests[0]) {
            None => Ok(()),
            Some(other) => Err(format!(
                "ranks 0 and {other} have other bits of {what}: {:016x}, {:016x}. Are their devices of one kind?",
                digests[0], digests[other]
            )),
        }
    }

    /// The last word: ends all ranks. `mpirun` exits with the code.
    pub fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}

/// The sum of vectors of one length, each with its neighbour, then pairs with pairs: ((a + b) + (c + d)) + .. A rank that
/// adds up its own, a power of two of them, before the ranks add up theirs, comes to the same bits.
pub fn tree<T: Number>(mut terms: Vec<Vec<T>>) -> Vec<T> {
    let mut stride = 1;
    while stride < terms.len() {
        for at in (0..terms.len() - stride).step_by(2 * stride) {
            let other = std::mem::take(&mut terms[at + stride]);
            for (sum, term) in terms[at].iter_mut().zip(other) {
                *sum += term;
            }
        }
        stride *= 2;
    }
    terms.into_iter().next().unwrap_or_default()
}

/// FNV-1a, 64 bits: tells whether two runs have the same bits.
pub fn digest(numbers: &[f32]) -> u64 {
    let bytes = numbers.iter().flat_map(|number| number.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_one_order_however_many_ranks_share_them() {
        let terms: Vec<Vec<f32>> = [1.0, 1e8, -1e8, 0.25, 3e-7, 7.0, -1.0, 0.1].map(|x| vec![x, 1.0]).into();
        let whole = tree(terms.clone());
        for ranks in [2, 4, 8] {
            let own = terms.chunks(8 / ranks).map(|own| tree(own.to_vec())).collect();
            assert_eq!(tree(own), whole, "{ranks} ranks");
        }
        let [a, b, c] = [vec![1.0f32], vec![1e8], vec![-1e8]];
        assert_eq!(tree(vec![a, b, c]), [(1.0f32 + 1e8) - 1e8], "three of them");
        assert!(tree::<f32>(vec![]).is_empty());
    }
}
