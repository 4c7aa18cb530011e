package processors

import (
	"math"
	"testing"
	"time"
)

func TestTicks(t *testing.T) {
	busy, total, ok := ticks([]byte("cpu  10 20 30 400 50 6 7 8 900 1000\ncpu0 1 2 3 4 5 6 7 8 9 10\n"))
	if busy != 81 || total != 531 || !ok {
		t.Errorf("%d busy of %d, %t; want 81 of 531", busy, total, ok)
	}
	for _, text := range []string{"", "cpu", "cpu 1 2 3 4 5 6 7", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu 1 2 3 4 x 6 7 8"} {
		if _, _, ok := ticks([]byte(text)); ok {
			t.Errorf("%q was taken", text)
		}
	}
}

// Another program may take all the time it wants meanwhile: it only makes the machine's share larger.
func TestSharesAreOfThisProcessAndThisMachine(t *testing.T) {
	own, all := ownShare(), machineShare()
	own()
	all()
	for begun, x := time.Now(), 1.0; time.Since(begun) < 200*time.Millisecond; {
		x = math.Sqrt(x + 1)
	}
	if o, a := own(), all(); o <= 0 || a <= 0 || a > 1 {
		t.Errorf("shares %v of one and %v of all processors after work", o, a)
	}
}
