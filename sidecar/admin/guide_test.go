package admin

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"txmesh/txn"
)

// TestGuideIsAccepted: what the guide to the modes sends is what the API takes, and it shows every mode.
func TestGuideIsAccepted(t *testing.T) {
	text, err := os.ReadFile("../../docs/guide/modes.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[txn.Mode]bool{txn.XA: true} // in words: it is tcc with other ones
	var mode txn.Mode
	for _, m := range regexp.MustCompile(`(?s)\$api/v1/transactions(\S*) -d '(.*?)'`).FindAllStringSubmatch(string(text), -1) {
		body := []byte(m[2])
		if strings.HasSuffix(m[1], "/branches") {
			if _, err := surfaces()[mode].branch(body); err != nil {
				t.Errorf("%s: branch %s: %v", mode, body, err)
			}
			continue
		}
		var q beginRequest
		if err := strict(body, &q); err != nil {
			t.Errorf("begin %s: %v", body, err)
			continue
		}
		e, err := q.event(time.Minute)
		if err == nil {
			_, err = new(txn.Machine).Step(time.Unix(1, 0), e)
		}
		if err != nil {
			t.Errorf("begin %s: %v", body, err)
		}
		mode = e.Spec.Mode
		shown[mode] = true
	}
	for m := range surfaces() {
		if !shown[m] {
			t.Errorf("the guide shows no %s", m)
		}
	}
}
