package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"txmesh/interceptor"
)

const takeovers = "/v1/takeovers/dtm"

// takeOverOf is a door that says what it was asked.
func takeOverOf(_ context.Context, body []byte, dryRun bool) (json.RawMessage, error) {
	switch string(body) {
	case "refuse":
		return nil, fmt.Errorf("%w: it has no branches", interceptor.ErrRefused)
	case "break":
		return nil, errors.New("the disk is full")
	}
	return json.Marshal(map[string]any{"body": string(body), "dry": dryRun})
}

func everyStatusOfTakeovers(f *fixture) {
	f.as("", "POST", takeovers, "{}")
	for _, body := range []string{"{}", "refuse", "break", strings.Repeat(" ", takeoverMax+1)} {
		f.do("POST", takeovers, body)
	}
	f.do("POST", takeovers+"?dry-run=perhaps", "{}")
}

func TestTakeoversReachTheDoor(t *testing.T) {
	f := newFixture(t)
	f.want("POST", takeovers, "x", 200, `{"body":"x","dry":false}`)
	f.want("POST", takeovers+"?dry-run=true", "x", 200, `{"body":"x","dry":true}`)
	f.want("POST", takeovers, "refuse", 409, refused("TXM0317", "it cannot be taken over: it has no branches", ""))
	f.want("POST", takeovers, "break", 503, refused("TXM0309", "the disk is full", ""))
}
