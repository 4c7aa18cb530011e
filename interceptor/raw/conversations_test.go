package raw

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestConversationsAreTheSameThrough plays random conversations directly and through a proxy, and compares what each side
// hears: every byte, every end, every reset.
func TestConversationsAreTheSameThrough(t *testing.T) {
	l := listener(t)
	r := run(t, Options{}, l.Addr().String())
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var heard [2][]string
			for i, address := range []string{l.Addr().String(), r.at} {
				client := dial(t, address)
				heard[i] = converse(t, rand.New(rand.NewPCG(seed, 1)), [2]*net.TCPConn{client, accepted(t, l)})
			}
			if diff := cmp.Diff(heard[0], heard[1]); diff != "" {
				t.Errorf("direct and through differ:\n%s", diff)
			}
		})
	}
}

// converse lets two sides speak in turns that random draws, until both have ended or one broke.
func converse(t *testing.T, random *rand.Rand, sides [2]*net.TCPConn) (heard []string) {
	t.Helper()
	ended := [2]bool{}
	for !ended[0] || !ended[1] {
		who := random.IntN(2)
		if ended[who] {
			who = 1 - who
		}
		from, to := sides[who], sides[1-who]
		switch random.IntN(8) {
		case 0:
			must(t, from.CloseWrite())
			ended[who] = true
			heard = append(heard, fmt.Sprint(1-who, " hears the ", ending(to)))
		case 1:
			if random.IntN(3) > 0 {
				continue
			}
			must(t, errors.Join(from.SetLinger(0), from.Close()))
			return append(heard, fmt.Sprint(1-who, " hears the ", ending(to)))
		default:
			size := 1 << random.IntN(20)
			heard = append(heard, fmt.Sprint(1-who, " hears ", utterance(t, random, from, to, size)))
		}
	}
	return heard
}

// utterance sends bytes from one to the other and returns what arrived.
func utterance(t *testing.T, random *rand.Rand, from io.Writer, to io.Reader, size int) string {
	t.Helper()
	text := make([]byte, size)
	for i := range text {
		text[i] = byte(random.Uint32())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(text)
		sent <- err
	}()
	got := make([]byte, size)
	_, err := io.ReadFull(to, got)
	must(t, errors.Join(err, <-sent))
	return fmt.Sprintf("%d bytes, %x", size, sha256.Sum256(got))
}
