//! Contenders that take turns in one run, and what their turns cost.
//!
//! Only ratios of one run mean anything: machines have neighbours, and clocks of processors move. So every contender has its
//! turn in every round, in another order in each of them, and the first round, in which caches fill, is not counted.

pub mod process;

/// What one turn cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Wall-clock time, in seconds.
    pub seconds: f64,
    /// The peak of resident memory, in KiB; none where no process of its own was measured.
    pub kilobytes: Option<f64>,
}

impl Cost {
    /// Of something that takes so long, in this process.
    pub fn seconds(seconds: f64) -> Self {
        Self { seconds, kilobytes: None }
    }
}

/// What a contender does when it is its turn.
type Turn<'a> = Box<dyn FnMut() -> Cost + 'a>;

/// Contenders that are to take turns.
#[derive(Default)]
pub struct Race<'a> {
    contenders: Vec<(String, Turn<'a>)>,
}

impl<'a> Race<'a> {
    /// Adds a contender. Its turn measures, and undoes what it did when the clock stands again.
    pub fn enter(&mut self, name: impl Into<String>, turn: impl FnMut() -> Cost + 'a) {
        self.contenders.push((name.into(), Box::new(turn)));
    }

    /// Has all of them take so many turns each that count, and prints what those cost under the race's name.
    pub fn run(mut self, id: &str, rounds: usize) -> Results {
        let mut costs = vec![Vec::with_capacity(rounds); self.contenders.len()];
        // What was made for it. The kernel would write it in the half minute to come, beside those who wait for the disk.
        nix::unistd::sync();
        // Of chance, which is the same in every run: whom one comes after matters. It may have left the same program in the
        // processor's caches, or the kernel with something to do still.
        let mut chance = fastrand::Rng::with_seed(0);
        let mut order: Vec<usize> = (0..self.contenders.len()).collect();
        for round in 0..=rounds {
            chance.shuffle(&mut order);
            for at in &order {
                let cost = (self.contenders[*at].1)();
                if round > 0 {
                    costs[*at].push(cost);
                }
            }
        }
        let names = self.contenders.into_iter().map(|(name, _)| name);
        let results = Results(names.zip(costs.into_iter().map(Samples)).collect());
        results.print(id);
        results
    }
}

/// What each contender's turns cost.
pub struct Results(Vec<(String, Samples)>);

impl Results {
    /// One contender's turns.
    pub fn of(&self, name: &str) -> &Samples {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, samples)| samples).expect("it was in the race")
    }

    /// All but these, with their names.
    pub fn but<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = (&'a str, &'a Samples)> {
        let named = self.0.iter().map(|(name, samples)| (name.as_str(), samples));
        named.filter(|(name, _)| !names.contains(name))
    }

    fn print(&self, id: &str) {
        for (name, samples) in &self.0 {
            let memory = samples.kilobytes().map_or_else(String::new, |peak| format!("{:>9.1} MB", peak / 1024.0));
            println!("{id:<28} {name:<44} {:>12.3} ms {memory}", samples.seconds() * 1e3);
        }
    }
}

/// What the turns of one contender cost, in the order of the rounds.
#[derive(Debug, Clone)]
pub struct Samples(Vec<Cost>);

impl Samples {
    /// The median, in seconds.
    pub fn seconds(&self) -> f64 {
        quantile(self.0.iter().map(|cost| cost.seconds).collect(), 0.5)
    }

    /// The median of the peaks of memory, in KiB.
    pub fn kilobytes(&self) -> Option<f64> {
        let peaks: Vec<f64> = self.0.iter().filter_map(|cost| cost.kilobytes).collect();
        (!peaks.is_empty()).then(|| quantile(peaks, 0.5))
    }

    /// How many times as long as another this one takes.
    pub fn over(&self, other: &Self) -> Ratio {
        let pairs = self.0.iter().zip(&other.0).map(|(mine, theirs)| mine.seconds / theirs.seconds);
        let pairs: Vec<f64> = pairs.collect();
        let at = |share| quantile(pairs.clone(), share);
        Ratio { middle: at(0.5), low: at(0.25), high: at(0.75) }
    }
}

/// How many times as long as another something takes, of the ratios of all rounds: who is slow in a round because of others is
/// so beside one that is slow for the same reason.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    /// The median.
    pub middle: f64,
    /// A quarter of the rounds had a smaller one.
    pub low: f64,
    /// A quarter of the rounds had a larger one.
    pub high: f64,
}

/// The value that this share of all values is smaller than, between two of them where it falls there.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    // A hundred rounds or so.
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let at = last as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, and not negative")]
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    values[below] + (values[above] - values[below]) * at.fract()
}
