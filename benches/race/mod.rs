//! Measures several programs in one run. The programs take turns.
//!
//! Only ratios of one run are comparable: other machines share the processors, and clocks change their speed. In every
//! round each program has one turn, in a new order. The first round fills caches and does not count.

pub mod process;

/// The time and the memory of one measurement.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The wall-clock time, in seconds.
    pub seconds: f64,
    /// The peak of resident memory, in KiB. `None` if no process was measured.
    pub kilobytes: Option<f64>,
}

impl Cost {
    /// Returns a cost without memory, for an operation in this process.
    pub fn seconds(seconds: f64) -> Self {
        Self { seconds, kilobytes: None }
    }
}

/// A function that runs the operation of one program once and returns its cost.
type Turn<'a> = Box<dyn FnMut() -> Cost + 'a>;

/// The programs of one comparison.
#[derive(Default)]
pub struct Race<'a> {
    contenders: Vec<(String, Turn<'a>)>,
}

impl<'a> Race<'a> {
    /// Adds a program to the comparison. `turn` measures one operation. `turn` may also prepare and undo the operation
    /// outside of the measured time.
    pub fn enter(&mut self, name: impl Into<String>, turn: impl FnMut() -> Cost + 'a) {
        self.contenders.push((name.into(), Box::new(turn)));
    }

    /// Runs a warm-up round and `rounds` measured rounds. Prints the medians under the name `id`.
    pub fn run(mut self, id: &str, rounds: usize) -> Results {
        let mut costs = vec![Vec::with_capacity(rounds); self.contenders.len()];
        // Without this sync(2), the kernel writes the prepared files during the measurement and slows fsync(2) down.
        nix::unistd::sync();
        // Each program affects the caches and the kernel's work for the next program. So the order is random. The seed
        // is fixed.
        let mut random = fastrand::Rng::with_seed(0);
        let mut order: Vec<usize> = (0..self.contenders.len()).collect();
        for round in 0..=rounds {
            random.shuffle(&mut order);
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

/// The measured costs of each program.
pub struct Results(Vec<(String, Samples)>);

impl Results {
    /// Returns the costs of one program.
    pub fn of(&self, name: &str) -> &Samples {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, samples)| samples).expect("the contender is in the race")
    }

    /// Returns the names and costs of all programs except `names`.
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

/// The costs of one program, in the order of the rounds.
#[derive(Debug, Clone)]
pub struct Samples(Vec<Cost>);

impl Samples {
    /// Returns the median time, in seconds.
    pub fn seconds(&self) -> f64 {
        quantile(self.0.iter().map(|cost| cost.seconds).collect(), 0.5)
    }

    /// Returns the median of the memory peaks, in KiB. `None` if no process was measured.
    pub fn kilobytes(&self) -> Option<f64> {
        let peaks: Vec<f64> = self.0.iter().filter_map(|cost| cost.kilobytes).collect();
        (!peaks.is_empty()).then(|| quantile(peaks, 0.5))
    }

    /// Returns the ratio of this program's times to the times of `other`.
    pub fn over(&self, other: &Self) -> Ratio {
        let pairs = self.0.iter().zip(&other.0).map(|(own, other)| own.seconds / other.seconds);
        let pairs: Vec<f64> = pairs.collect();
        let at = |share| quantile(pairs.clone(), share);
        Ratio { middle: at(0.5), low: at(0.25), high: at(0.75) }
    }
}

/// The ratio of two programs' times, computed in each round. A slow round affects both programs.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    /// The median of the ratios of all rounds.
    pub middle: f64,
    /// The lower quartile of the ratios of all rounds.
    pub low: f64,
    /// The upper quartile of the ratios of all rounds.
    pub high: f64,
}

/// Returns a quantile by linear interpolation. `share` is between 0 and 1.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    #[expect(clippy::cast_precision_loss, reason = "about a hundred rounds")]
    let at = last as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, and not negative")]
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    values[below] + (values[above] - values[below]) * at.fract()
}
