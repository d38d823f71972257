//! Strikes of one step and one picture, sorted out by output, and what they do to an accumulator.
//!
//! Promises: outputs come in ascending order, each once, with the strikes of its words in the order of [`Strike`];
//! a change of an accumulator is a wrapping sum of deltas, so only the partial sums at struck words are computed.

use crate::faults::{Site, Strike};

use super::operands::Products;

/// Numbers that turn words of a step into outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    /// K of the contract.
    pub(crate) products: usize,
    /// MACs per accumulator update.
    pub(crate) lanes: usize,
    /// Bits of a product.
    pub(crate) product_bits: u32,
}

impl Words {
    /// Accumulator updates of one output.
    pub(crate) fn updates(&self) -> usize {
        self.products.div_ceil(self.lanes)
    }

    /// Products that are in the accumulator after `update`.
    pub(crate) fn upto(&self, update: usize) -> usize {
        ((update + 1) * self.lanes).min(self.products)
    }
}

/// The strikes of one site, of a list sorted by site.
pub(crate) fn of_site(strikes: &[Strike], site: Site) -> &[Strike] {
    let start = strikes.partition_point(|strike| strike.site < site);
    let end = strikes.partition_point(|strike| strike.site <= site);
    &strikes[start..end]
}

/// One replica's strikes that belong to single outputs, read in ascending order of outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    lists: [&'a [Strike]; 4],
    words: [u64; 4],
    /// The output of each list's first strike; `u64::MAX` at the end.
    next: [u64; 4],
}

/// One replica's strikes of one output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OfOutput<'a> {
    pub(crate) mul: &'a [Strike],
    pub(crate) acc: &'a [Strike],
    pub(crate) acc_out: &'a [Strike],
    pub(crate) out: &'a [Strike],
}

impl<'a> Cursor<'a> {
    /// Starts at the first output; `words` is `None` for a step without accumulators, which has `out` only.
    pub(crate) fn new(strikes: &'a [Strike], words: Option<Words>) -> Self {
        let [mul, acc, acc_out] = match words {
            Some(_) => [Site::Mul, Site::Acc, Site::AccOut].map(|site| of_site(strikes, site)),
            None => [&[][..]; 3],
        };
        let per_output = words.map_or([1, 1], |words| [words.products.max(1) as u64, words.updates().max(1) as u64]);
        let mut cursor = Self {
            lists: [mul, acc, acc_out, of_site(strikes, Site::Out)],
            words: [per_output[0], per_output[1], 1, 1],
            next: [u64::MAX; 4],
        };
        (0..4).for_each(|at| cursor.look(at));
        cursor
    }

    fn look(&mut self, at: usize) {
        self.next[at] = self.lists[at].first().map_or(u64::MAX, |strike| strike.word / self.words[at]);
    }

    /// The next output that has strikes; `u64::MAX` when none is left.
    pub(crate) fn peek(&self) -> u64 {
        let [a, b, c, d] = self.next;
        a.min(b).min(c.min(d))
    }

    /// The strikes of `output`; those of lower outputs must have been taken.
    pub(crate) fn take(&mut self, output: u64) -> OfOutput<'a> {
        let mut of = OfOutput::default();
        let parts = [&mut of.mul, &mut of.acc, &mut of.acc_out, &mut of.out];
        for (at, part) in parts.into_iter().enumerate() {
            if self.next[at] != output {
                continue;
            }
            let list = self.lists[at];
            let end = (output + 1).saturating_mul(self.words[at]);
            let count = list.iter().take_while(|strike| strike.word < end).count();
            (*part, self.lists[at]) = list.split_at(count);
            self.look(at);
        }
        of
    }
}

impl OfOutput<'_> {
    /// Whether a vote on accumulators can differ because of this replica.
    pub(crate) fn strikes_accumulator(&self) -> bool {
        !(self.mul.is_empty() && self.acc.is_empty() && self.acc_out.is_empty())
    }

    /// Whether anything of this output is struck.
    pub(crate) fn any(&self) -> bool {
        self.strikes_accumulator() || !self.out.is_empty()
    }
}

/// What happens to one word.
pub(crate) trait Effect {
    /// The word's number.
    fn word(&self) -> u64;
    /// Its value afterwards.
    fn apply(&self, value: i32, bits: u32) -> i32;
}

impl Effect for Strike {
    fn word(&self) -> u64 {
        self.word
    }

    fn apply(&self, value: i32, bits: u32) -> i32 {
        self.change.apply_signed(value, bits)
    }
}

/// One word of a unit that votes on every operation, struck in two replicas or more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voted<'a> {
    word: u64,
    strikes: [&'a [Strike]; 3],
}

impl Effect for Voted<'_> {
    fn word(&self) -> u64 {
        self.word
    }

    fn apply(&self, value: i32, bits: u32) -> i32 {
        majority(self.strikes.map(|strikes| strikes.iter().fold(value, |value, strike| strike.apply(value, bits))))
    }
}

/// Bitwise majority.
pub(crate) fn majority([a, b, c]: [i32; 3]) -> i32 {
    (a & b) | (a & c) | (b & c)
}

/// The words that two replicas or more have struck, in ascending order.
pub(crate) fn vote_words<'a>(mut replicas: [&'a [Strike]; 3]) -> Vec<Voted<'a>> {
    let mut voted = Vec::new();
    while let Some(word) = replicas.iter().filter_map(|list| list.first().map(|strike| strike.word)).min() {
        let strikes = [0, 1, 2].map(|at| {
            let list: &'a [Strike] = replicas[at];
            let (taken, rest) = list.split_at(list.iter().take_while(|strike| strike.word == word).count());
            replicas[at] = rest;
            taken
        });
        if strikes.iter().filter(|list| !list.is_empty()).count() >= 2 {
            voted.push(Voted { word, strikes });
        }
    }
    voted
}

/// The final accumulator of an output under effects on its products and on its accumulator updates.
pub(crate) fn accumulate<E: Effect>(
    taps: &impl Products,
    words: &Words,
    output: u64,
    bias: i32,
    mul: &[E],
    acc: &[E],
) -> i32 {
    let first_product = output * words.products as u64;
    let first_update = output * words.updates() as u64;
    let mut products = mul.iter().peekable();
    let mut delta = 0_i32;
    // Products below `upto`, in ascending k; several effects on one product see each other's result.
    let mut take_products = |delta: &mut i32, upto: usize| {
        while let Some(effect) = products.next_if(|effect| ((effect.word() - first_product) as usize) < upto) {
            let clean = taps.product((effect.word() - first_product) as usize);
            let mut struck = effect.apply(clean, words.product_bits);
            while let Some(next) = products.next_if(|next| next.word() == effect.word()) {
                struck = next.apply(struck, words.product_bits);
            }
            *delta = delta.wrapping_add(struck.wrapping_sub(clean));
        }
    };
    let mut clean = bias;
    let mut done = 0;
    for effect in acc {
        let upto = words.upto((effect.word() - first_update) as usize);
        take_products(&mut delta, upto);
        clean = clean.wrapping_add(taps.sum(done..upto));
        done = upto;
        let before = clean.wrapping_add(delta);
        delta = delta.wrapping_add(effect.apply(before, 32).wrapping_sub(before));
    }
    take_products(&mut delta, words.products);
    clean.wrapping_add(taps.sum(done..words.products)).wrapping_add(delta)
}
