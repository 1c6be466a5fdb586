window.VSP_CASES={"cases":[],"latents":{}};
