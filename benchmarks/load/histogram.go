package load

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histogram counts durations to three digits, from 100 ns to ten minutes. It is not safe for many goroutines.
type Histogram struct{ h *hdrhistogram.Histogram }

const (
	shortest = 100 * time.Nanosecond
	longest  = 10 * time.Minute
	digits   = 3
)

// NewHistogram returns an empty one.
func NewHistogram() *Histogram {
	return &Histogram{hdrhistogram.New(int64(shortest), int64(longest), digits)}
}

// Record counts d; what is longer than the longest counts as that.
func (h *Histogram) Record(d time.Duration) {
	if err := h.h.RecordValue(int64(min(max(d, 0), longest))); err != nil {
		panic(fmt.Sprintf("load: %v is within the range of the histogram: %v", d, err))
	}
}

// Merge adds all that from has.
func (h *Histogram) Merge(from *Histogram) {
	if dropped := h.h.Merge(from.h); dropped > 0 {
		panic(fmt.Sprintf("load: %d values of a histogram with the same range were dropped", dropped))
	}
}

// Count is how many durations were recorded.
func (h *Histogram) Count() int64 { return h.h.TotalCount() }

// Max is the longest.
func (h *Histogram) Max() time.Duration { return time.Duration(h.h.Max()) }

// At is the duration that a share of all, such as 0.99, did not exceed.
func (h *Histogram) At(share float64) time.Duration {
	return time.Duration(h.h.ValueAtQuantile(100 * share))
}

// Point is one point of a curve of latencies.
type Point struct {
	Share float64       `json:"share"`
	At    time.Duration `json:"at"`
}

// Curve has a few points for each halving of the share that waited longer, as far as there are values for it.
func (h *Histogram) Curve() []Point {
	const each = 4
	var points []Point
	for n := 0; ; n++ {
		share := 1 - math.Pow(2, -float64(n)/each)
		if float64(h.Count())*(1-share) < 1 {
			return points
		}
		points = append(points, Point{share, h.At(share)})
	}
}

// shard counts for some of the connections.
type shard struct {
	mu      sync.Mutex // guards all below
	warm    int64
	ok      int64
	errors  map[string]int64
	latency *Histogram
}

// shardsMax keeps the histograms in the cache and their mutexes free.
const shardsMax = 8

func newShards() []*shard {
	all := make([]*shard, shardsMax)
	for i := range all {
		all[i] = &shard{errors: map[string]int64{}, latency: NewHistogram()}
	}
	return all
}

// count counts a call that was due at a time, if that is not before begin.
func (s *shard) count(due, begin time.Time, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if due.Before(begin) {
		s.warm++
		return
	}
	s.latency.Record(took)
	if err == nil {
		s.ok++
		return
	}
	s.errors[name(err)]++
}

// never counts a call that was due and that no connection was free for.
func (s *shard) never(due, begin time.Time) { s.count(due, begin, time.Since(due), errNeverStarted) }
