package plot

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// Point says that a share of all calls, such as 0.99, took at most so long.
type Point struct {
	Share float64
	At    time.Duration
}

// Curve is the latencies of one series, from low shares to high.
type Curve struct {
	Series
	Points []Point
}

const (
	legendWidth = 150
	plotHeight  = 320
	axisWidth   = 64
)

// frame maps values to places: to the right, each nine of the share takes as much room; upwards, each power of ten of time.
type frame struct {
	left, right, top, bottom float64
	nines                    float64 // shown
	low, high                float64 // powers of ten of microseconds
}

func (f frame) x(share float64) float64 {
	return f.left + math.Min(-math.Log10(1-share)/f.nines, 1)*(f.right-f.left)
}

func (f frame) y(d time.Duration) float64 {
	v := (math.Log10(float64(d)/float64(time.Microsecond)) - f.low) / (f.high - f.low)
	return f.bottom - math.Max(math.Min(v, 1), 0)*(f.bottom-f.top)
}

// Curves draws latencies over the share of calls that did not take longer, both logarithmic.
func Curves(w io.Writer, title, subtitle string, curves []Curve) error {
	var c canvas
	c.head(title, subtitle)
	f := frame{left: margin + axisWidth, right: width - margin - legendWidth, top: c.height + 8, bottom: c.height + 8 + plotHeight, nines: 1, low: math.Inf(1), high: math.Inf(-1)}
	for _, l := range curves {
		for _, p := range l.Points {
			v := math.Log10(math.Max(float64(p.At)/float64(time.Microsecond), 0.1))
			f.low, f.high = math.Min(f.low, v), math.Max(f.high, v)
			f.nines = math.Max(f.nines, -math.Log10(1-p.Share))
		}
	}
	if f.low > f.high {
		f.low, f.high = 0, 1
	}
	// Whole steps of a third of a power of ten, so that the marks 1, 2 and 5 are near the ends.
	f.low, f.high = math.Floor(f.low*3)/3, math.Ceil(f.high*3+0.01)/3
	c.grid(f)
	for i, l := range curves {
		c.curve(f, l)
		y := f.top + 12 + float64(i)*20
		c.add(`<path class="l s%d" d="M%.1f %.1fh22" %s/>`, l.Color%Colors, f.right+14, y-4, dashes(l.Color))
		c.text("", "start", f.right+42, y, l.Name)
	}
	c.height = f.bottom + 40
	return c.writeTo(w, title)
}

func (c *canvas) grid(f frame) {
	for power := int(math.Floor(f.low)); power <= int(math.Ceil(f.high)); power++ {
		for _, digit := range []float64{1, 2, 5} {
			v := float64(power) + math.Log10(digit)
			if v < f.low || v > f.high {
				continue
			}
			d := time.Duration(math.Round(digit * math.Pow10(power) * float64(time.Microsecond)))
			c.add(`<path class="grid" d="M%.1f %.1fH%.1f"/>`, f.left, f.y(d), f.right)
			c.text("soft", "end", f.left-8, f.y(d)+4, length(d))
		}
	}
	for _, share := range []float64{0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999} {
		if -math.Log10(1-share) > f.nines+1e-9 {
			break
		}
		c.add(`<path class="grid" d="M%.1f %.1fV%.1f"/>`, f.x(share), f.top, f.bottom)
		c.text("soft", "middle", f.x(share), f.bottom+18, fmt.Sprintf("%.6g %%", 100*share))
	}
	c.text("soft", "middle", (f.left+f.right)/2, f.bottom+38, "share of calls that took at most so long")
}

func (c *canvas) curve(f frame, l Curve) {
	var d strings.Builder
	for i, p := range l.Points {
		fmt.Fprintf(&d, "%c%.1f %.1f", "ML"[min(i, 1)], f.x(p.Share), f.y(p.At))
	}
	c.add(`<path class="l s%d" d="%s" %s/>`, l.Color%Colors, d.String(), dashes(l.Color))
}

// dashes tell lines apart for those who do not see their colours.
func dashes(color int) string {
	pattern := []string{"2 3", "8 3", "12 3 2 3", "5 3 2 3", "", "", "9 2", "4 2"}[color%Colors]
	if pattern == "" {
		return ""
	}
	return `stroke-dasharray="` + pattern + `"`
}

func length(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%g s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%g ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%g us", float64(d)/float64(time.Microsecond))
}
