package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"testing"
	"time"
)

// element is what matters of an element of a drawing.
type element struct {
	name  string
	attrs map[string]string
	text  string
}

// parse reads a drawing, which must be well-formed.
func parse(t *testing.T, b []byte) []element {
	t.Helper()
	var all []element
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in:\n%s", err, b)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			e := element{tok.Name.Local, map[string]string{}, ""}
			for _, a := range tok.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			all = append(all, e)
		case xml.CharData:
			if len(all) > 0 {
				all[len(all)-1].text += string(tok)
			}
		}
	}
}

func (e element) number(t *testing.T, name string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(e.attrs[name], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// inside checks that no text leaves the drawing or covers another one, with a generous width of a character.
func inside(t *testing.T, all []element) {
	t.Helper()
	type box struct {
		left, right, y float64
		text           string
	}
	var boxes []box
	for _, e := range all {
		if e.name != "text" {
			continue
		}
		wide := 7 * float64(len(e.text))
		if e.attrs["class"] == "title" {
			wide = 10 * float64(len(e.text))
		}
		x := e.number(t, "x")
		switch e.attrs["text-anchor"] {
		case "middle":
			x -= wide / 2
		case "end":
			x -= wide
		}
		boxes = append(boxes, box{x, x + wide, e.number(t, "y"), e.text})
	}
	high := all[0].number(t, "height")
	for i, b := range boxes {
		if b.left < 0 || b.right > width || b.y < 10 || b.y > high {
			t.Errorf("%q is not inside: %+v", b.text, b)
		}
		for _, o := range boxes[i+1:] {
			if math.Abs(b.y-o.y) < 11 && b.left < o.right && o.left < b.right {
				t.Errorf("%q covers %q", b.text, o.text)
			}
		}
	}
}

func TestBarsAreAsLongAsTheirValues(t *testing.T) {
	g := Group{Name: "1 KiB & more, 32 connections"}
	for i, name := range []string{"direct", "minimal fasthttp", "nginx", "haproxy", "envoy", "txmesh untagged", "txmesh tagged"} {
		v := 100_000 / float64(i+1)
		g.Bars = append(g.Bars, Bar{Series{name, i}, v, v * 0.8, v * 1.2})
	}
	var w bytes.Buffer
	long := "More is better. Closed loop; medians of 3 rounds, lines from least to most. Each group has a scale of its own. And some more words, so that it needs a second line."
	if err := Bars(&w, "HTTP/1.1: calls a second <each>", long, []Group{g, g, {Name: "empty"}}); err != nil {
		t.Fatal(err)
	}
	all := parse(t, w.Bytes())
	inside(t, all)
	var lengths []float64
	for _, e := range all {
		if e.name == "rect" && e.attrs["rx"] != "" {
			lengths = append(lengths, e.number(t, "width"))
		}
	}
	if len(lengths) != 14 {
		t.Fatalf("%d bars, want 14", len(lengths))
	}
	for i, l := range lengths[:7] {
		if want := lengths[0] / float64(i+1); math.Abs(l-want) > 0.2 {
			t.Errorf("bar %d is %.1f long, want %.1f", i, l, want)
		}
	}
}

func TestCurvesRiseFromLeftToRight(t *testing.T) {
	var curves []Curve
	for i, name := range []string{"direct", "minimal fasthttp", "nginx", "haproxy", "envoy", "txmesh untagged", "txmesh tagged"} {
		l := Curve{Series: Series{name, i}}
		for n := range 60 {
			share := 1 - math.Pow(2, -float64(n)/4)
			l.Points = append(l.Points, Point{share, time.Duration(float64(30*time.Microsecond) * float64(i+1) * math.Pow(1.15, float64(n)))})
		}
		curves = append(curves, l)
	}
	var w bytes.Buffer
	if err := Curves(&w, "gRPC: latency, 1 KiB, 32 connections", "Open loop.", curves); err != nil {
		t.Fatal(err)
	}
	all := parse(t, w.Bytes())
	inside(t, all)
	drawn := 0
	for _, e := range all {
		if e.name != "path" || len(e.attrs["d"]) < 300 {
			continue
		}
		drawn++
		x, y := -1.0, 1e9
		for _, p := range bytes.FieldsFunc([]byte(e.attrs["d"]), func(r rune) bool { return r == 'M' || r == 'L' }) {
			var nx, ny float64
			if _, err := fmt.Sscan(string(p), &nx, &ny); err != nil {
				t.Fatal(err)
			}
			if nx < x || ny > y {
				t.Errorf("a curve goes from %.1f,%.1f to %.1f,%.1f", x, y, nx, ny)
			}
			x, y = nx, ny
		}
	}
	if drawn != 7 {
		t.Errorf("%d curves, want 7", drawn)
	}
}

func TestNothingToDrawIsADrawing(t *testing.T) {
	var w bytes.Buffer
	if err := Curves(&w, "t", "", nil); err != nil {
		t.Fatal(err)
	}
	inside(t, parse(t, w.Bytes()))
}

func TestNumbersAreReadable(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 9.876: "9.88", 12.34: "12.3", 999.6: "1,000", 1234567: "1,234,567"} {
		if got := short(v); got != want {
			t.Errorf("short(%g) = %s, want %s", v, got, want)
		}
	}
}
