package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// hanging compares new transactions before and while many others hang on a branch that never answers.
func (b *bench) hanging() error {
	kind, clients := b.kinds[0], b.clients[len(b.clients)-1]
	fmt.Printf("%s, %d clients, %v each\n\n| hanging | transactions/s | p50 | p99 | errors |\n|---|---|---|---|---|\n", kind, clients, b.each)
	var rates [2][]float64
	for range b.turns {
		for i, n := range []int{0, b.hang} {
			if n > 0 {
				if err := b.hangUp(n); err != nil {
					return err
				}
			}
			r, err := b.load(kind, clients, b.each)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], r.rate())
			fmt.Printf("| %d | %.0f | %v | %v | %d |\n", n, r.rate(), ms(r.at(0.5)), ms(r.at(0.99)), r.errors)
		}
		b.stop() // the next turn begins without any that hang
		b.dir += "+"
		if err := b.restart(); err != nil {
			return err
		}
	}
	fmt.Printf("\nmedian ratio: %.2f\n", median(rates[1])/median(rates[0]))
	return nil
}

// hangUp begins transactions whose branch never answers.
func (b *bench) hangUp(n int) error {
	var wg sync.WaitGroup
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	errs := make(chan error, 50)
	for range 50 {
		wg.Go(func() {
			for range work {
				err := b.post("submit", fmt.Sprintf(`{"gid":%q,"trans_type":"msg","steps":[{"action":"http://%s/hang"}],"payloads":["{}"]}`, b.gid(), b.service))
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		time.Sleep(time.Second) // they are all at it
		return nil
	}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}
